"""What runs on several devices: a KV cache on GPU and host together, and heads split over ranks."""
