/* Faults for a process that is trained to meet them (scripts/soak.py): loaded before libc (LD_PRELOAD).

   SOAK_FILE   a file of counters that the processes and the soak share, 8 bytes each:
               [0] seconds by which the clock of the day is off, [1] large allocations to refuse,
               [2] how many were refused

   Large is from 64 kB on: what a tensor takes, and not what an interpreter needs to say so. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define LARGE (64 << 10)
static volatile int64_t *counters;

__attribute__((constructor)) static void begin(void) {
    const char *file = getenv("SOAK_FILE");
    int descriptor = file ? open(file, O_RDWR) : -1;
    if (descriptor < 0) return;
    void *mapped = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (mapped != MAP_FAILED) counters = mapped;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(clock, now);
    if (!code && counters && clock == CLOCK_REALTIME) now->tv_sec += counters[0];
    return code;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
    int code = real(now, zone);
    if (!code && counters) now->tv_sec += counters[0];
    return code;
}

time_t time(time_t *to) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (to) *to = now.tv_sec;
    return now.tv_sec;
}

int posix_memalign(void **to, size_t alignment, size_t size) {
    static int (*real)(void **, size_t, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "posix_memalign");
    if (counters && counters[1] > 0 && size >= LARGE) {
        __sync_sub_and_fetch(&counters[1], 1);
        __sync_add_and_fetch(&counters[2], 1);
        return ENOMEM;
    }
    return real(to, alignment, size);
}
