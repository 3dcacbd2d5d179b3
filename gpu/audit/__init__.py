"""What can be known of a CUDA kernel without a GPU: its machine code, read, counted, executed, and modelled.

``make sass`` compiles every configuration with NVRTC (as CuPy does at run time) and reads the machine code
(SASS):

* `toolchain`: source to cubin, cubin to listing;
* `sass`: listing to instructions and loops;
* `processor`, `integers`, `floats`, `tensor`, `memory`: an emulator that executes a sm_70 kernel lane by
  lane. It tells
  which instructions a tile of keys really costs, which banks each access meets, and whether the result is
  right;
* `banks`: wavefronts of an access to shared memory;
* `bound`: from the executed instructions to the share of time in which tensor cores can be busy on a V100;
* `report`, `__main__`: the table, and what is required.

It needs NumPy, and the packages that the extra ``sass`` names; nothing here is imported by a launcher.
"""
