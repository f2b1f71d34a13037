// Lets a host compiler build the kernels of this folder as ordinary C++ and run them as a device would:
// every thread of a block is a fiber, and a barrier or an exchange within a warp is waited at by all who must
// come. What a device leaves undefined is made to show: shared memory begins as NaN, one warp runs ahead of the
// others, in blocks with odd numbers the last one, a barrier that some threads never reach and an argument of another
// type than the kernel's are errors.

#pragma once

#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local
#define KERNEL static void
#define ENTRY(kernel) \
    extern "C" int launch_##kernel(const emulator::Launch* launch) { return emulator::run(#kernel, kernel, *launch); }
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulator::shared.data())

struct uint3 {
    unsigned x, y, z;
};

struct __nv_bfloat16 {
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 value) {
    uint32_t bits = uint32_t(value.bits) << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

// To the nearest, ties to even; a NaN stays one.
inline __nv_bfloat16 __float2bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (value != value) return {0x7fff};
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

namespace emulator {

// As `Argument` of launch.rs lays it out.
struct Argument {
    uint32_t kind, unused;
    uint64_t bits;
};

struct Launch {
    uint32_t grid[3], block[3], shared, count;
    const Argument* arguments;
};

// The kinds of launch.rs: a scalar's, or 16 and the element's for memory.
template <class T> struct Kind;
template <> struct Kind<unsigned> { static constexpr uint32_t value = 1; };
template <> struct Kind<unsigned long long> { static constexpr uint32_t value = 2; };
template <> struct Kind<float> { static constexpr uint32_t value = 3; };
template <> struct Kind<double> { static constexpr uint32_t value = 4; };
template <class T> struct Element;
template <> struct Element<float> { static constexpr uint32_t value = 0; };
template <> struct Element<__nv_bfloat16> { static constexpr uint32_t value = 1; };
template <> struct Element<unsigned> { static constexpr uint32_t value = 2; };
template <> struct Element<unsigned char> { static constexpr uint32_t value = 3; };
template <> struct Element<double> { static constexpr uint32_t value = 4; };
template <class T> struct Kind<T*> { static constexpr uint32_t value = 16 + Element<std::remove_const_t<T>>::value; };

enum class State { Ready, AtBarrier, AtWarp, Done };

struct Fiber {
    jmp_buf place;
    bool begun = false;
    State state = State::Ready;
    uint3 thread;
    unsigned number;
    unsigned exchanges = 0;
    std::vector<char> stack;
};

inline thread_local std::vector<Fiber> fibers;
inline thread_local Fiber* current = nullptr;
inline thread_local jmp_buf scheduler;
inline thread_local uint3 block_index, block_size, grid_size;
inline thread_local std::vector<unsigned char> shared;
// What the lanes of each warp hand over, twice: one exchange may be read while the next is written.
inline thread_local std::vector<uint32_t> lanes[2];
inline thread_local void (*body)(void*) = nullptr;
inline thread_local void* arguments_of_body = nullptr;

inline void give_way(State state) {
    current->state = state;
    if (!_setjmp(current->place)) _longjmp(scheduler, 1);
}

inline void begin() {
    body(arguments_of_body);
    current->state = State::Done;
    _longjmp(scheduler, 1);
}

inline void resume(Fiber& fiber) {
    current = &fiber;
    if (_setjmp(scheduler)) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    if (fiber.stack.empty()) fiber.stack.resize(1 << 16);
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber.stack.data();
    context.uc_stack.ss_size = fiber.stack.size();
    context.uc_link = nullptr;
    makecontext(&context, begin, 0);
    setcontext(&context);
}

// Runs one block; false when its threads wait for ever.
inline bool run_block(unsigned threads, bool falling) {
    for (unsigned i = 0; i < threads; i++) {
        fibers[i].begun = false;
        fibers[i].state = State::Ready;
        fibers[i].exchanges = 0;
    }
    // Each warp goes as far as it can before the next one moves: what lacks a barrier meets a warp ahead of it.
    unsigned warps = (threads + 31) / 32;
    for (;;) {
        unsigned done = 0, waiting = 0;
        for (unsigned turn = 0; turn < warps; turn++) {
            unsigned first = 32 * (falling ? warps - 1 - turn : turn), end = first + 32 < threads ? first + 32 : threads;
            for (bool moved = true; moved;) {
                moved = false;
                unsigned at_warp = 0;
                for (unsigned i = first; i < end; i++) {
                    Fiber& fiber = fibers[falling ? first + end - 1 - i : i];
                    if (fiber.state != State::Ready) continue;
                    resume(fiber);
                    moved = true;
                }
                for (unsigned i = first; i < end; i++) at_warp += fibers[i].state == State::AtWarp;
                if (at_warp < end - first) continue;
                for (unsigned i = first; i < end; i++) fibers[i].state = State::Ready;
                moved = true;
            }
            for (unsigned i = first; i < end; i++) {
                done += fibers[i].state == State::Done;
                waiting += fibers[i].state == State::AtBarrier;
            }
        }
        if (done == threads) return true;
        if (waiting < threads) return false;
        for (unsigned i = 0; i < threads; i++) fibers[i].state = State::Ready;
    }
}

template <class T> T value_of(const Argument& argument) {
    T value;
    memcpy(&value, &argument.bits, sizeof(T));
    return value;
}

template <class... A> struct Bound {
    void (*kernel)(A...);
    const Argument* arguments;
    template <size_t... I> void call(std::index_sequence<I...>) { kernel(value_of<A>(arguments[I])...); }
    static void run(void* self) { static_cast<Bound*>(self)->call(std::index_sequence_for<A...>()); }
};

template <class... A> int run(const char* name, void (*kernel)(A...), const Launch& launch) {
    const uint32_t kinds[] = {Kind<A>::value...};
    if (launch.count != sizeof...(A)) {
        fprintf(stderr, "%s takes %zu arguments, not %u\n", name, sizeof...(A), launch.count);
        return 1;
    }
    for (uint32_t i = 0; i < launch.count; i++) {
        if (launch.arguments[i].kind != kinds[i]) {
            fprintf(stderr, "%s: argument %u is of kind %u, not %u\n", name, i, kinds[i], launch.arguments[i].kind);
            return 1;
        }
    }
    const uint32_t *grid = launch.grid, *block = launch.block;
    unsigned threads = block[0] * block[1] * block[2];
    if (threads == 0 || threads > 1024 || launch.shared > 227 * 1024 || grid[1] > 65535 || grid[2] > 65535) {
        fprintf(stderr, "%s: no device takes %u threads a block and %u shared bytes\n", name, threads, launch.shared);
        return 1;
    }
    Bound<A...> bound{kernel, launch.arguments};
    body = Bound<A...>::run;
    arguments_of_body = &bound;
    block_size = {block[0], block[1], block[2]};
    grid_size = {grid[0], grid[1], grid[2]};
    if (fibers.size() < threads) fibers.resize(threads);
    for (unsigned i = 0; i < threads; i++) {
        fibers[i].number = i;
        fibers[i].thread = {i % block[0], i / block[0] % block[1], i / block[0] / block[1]};
    }
    for (auto& half : lanes) half.assign(threads + 32, 0);
    unsigned number = 0;
    for (uint32_t z = 0; z < grid[2]; z++)
        for (uint32_t y = 0; y < grid[1]; y++)
            for (uint32_t x = 0; x < grid[0]; x++, number++) {
                block_index = {x, y, z};
                shared.assign(launch.shared + 16, 0xff);
                if (!run_block(threads, number % 2)) {
                    fprintf(stderr, "%s: some threads of block (%u, %u, %u) wait for ever\n", name, x, y, z);
                    return 1;
                }
            }
    return 0;
}

// Hands a word to the lanes of the warp and reads that of another lane.
template <class T> T exchange(T value, unsigned from) {
    static_assert(sizeof(T) == 4, "only words are exchanged");
    Fiber& fiber = *current;
    std::vector<uint32_t>& half = lanes[fiber.exchanges++ % 2];
    memcpy(&half[fiber.number], &value, 4);
    give_way(State::AtWarp);
    T other;
    memcpy(&other, &half[fiber.number / 32 * 32 + from % 32], 4);
    return other;
}

}  // namespace emulator

#define threadIdx (emulator::current->thread)
#define blockIdx emulator::block_index
#define blockDim emulator::block_size
#define gridDim emulator::grid_size

inline void __syncthreads() { emulator::give_way(emulator::State::AtBarrier); }
inline void __syncwarp() { emulator::exchange(0u, 0); }

template <class T> T __shfl_sync(unsigned, T value, int lane) { return emulator::exchange(value, lane); }
template <class T> T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulator::exchange(value, (emulator::current->number % 32) ^ mask);
}

// Rounded once each: the host compiler is told not to contract them.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
