// Random calls from several threads at once, each checked: what ThreadSanitizer and valgrind watch.
//
//     calls NUMBER [THREADS [SEED [TEAM]]]
//
// TEAM, where it is not 0, is how many threads of OpenMP each call gets; else the bytes choose.
#include <thread>

#include "call.hpp"

int main(int argc, char **argv) {
  const long number = argc > 1 ? std::atol(argv[1]) : 100, threads = argc > 2 ? std::atol(argv[2]) : 1;
  const uint64_t seed = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 0;
  const int team_size = argc > 4 ? std::atoi(argv[4]) : 0;
  const auto work = [&](long first) {
    // Each has its share from the start: on a busy machine one thread could be done with all before others
    // begin.
    for (long i = first; i < number; i += threads) {
      uint64_t word = seed * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(i) + 1;
      uint8_t bytes[64];
      for (uint8_t &byte : bytes) {  // splitmix64
        uint64_t z = word += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        byte = static_cast<uint8_t>((z ^ z >> 27) >> 32);
      }
      calls::make(bytes, sizeof bytes, team_size);
    }
  };
  std::vector<std::thread> team;
  for (long t = 1; t < threads; ++t) team.emplace_back(work, t);
  work(0);
  for (std::thread &thread : team) thread.join();
  std::printf("%ld calls from %ld threads, all right\n", number, threads);
}
