/* A disk that gets full: loaded before libc (LD_PRELOAD), it refuses what needs room below a folder.

   FULL_ROOT   the folder
   FULL_FILE   a file of counters that processes and the test share: 8 bytes each,
               [0] operations so far, [1] the first that is refused (0: none), [2] the first that is
               not refused any more (0: all from there on are), [3] how many were refused

   Operations are what takes room: writes of every kind, new files and folders, links, growing a
   file. What makes room (unlink, shrinking) or needs none (writing over in place) is let through.
   While it refuses, the disk says that nothing is free; being asked counts as an operation then. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *root;
static volatile int64_t *counters;

__attribute__((constructor)) static void begin(void) {
    const char *file = getenv("FULL_FILE");
    root = getenv("FULL_ROOT");
    if (!root || !file) return;
    int descriptor = open(file, O_RDWR);
    if (descriptor < 0) return;
    void *mapped = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (mapped != MAP_FAILED) counters = mapped;
}

static int below(const char *path) {
    size_t length = strlen(root);
    return !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

static int path_counts(int at, const char *path) {
    char whole[PATH_MAX * 2], link[64];
    if (!counters || !path) return 0;
    if (path[0] == '/') return below(path);
    if (at == AT_FDCWD) {
        if (!getcwd(whole, PATH_MAX)) return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        ssize_t got = readlink(link, whole, PATH_MAX - 1);
        if (got < 0) return 0;
        whole[got] = 0;
    }
    return below(whole);
}

static int counts(int descriptor) {
    char link[64], path[PATH_MAX];
    if (!counters) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t got = readlink(link, path, sizeof path - 1);
    if (got < 0) return 0;
    path[got] = 0;
    return below(path);
}

static int full_now(int64_t number) {
    int64_t first = counters[1], end = counters[2];
    return first && number >= first && (!end || number < end);
}

static int refused(void) {
    int64_t number = __sync_add_and_fetch(&counters[0], 1);
    if (!full_now(number)) return 0;
    __sync_add_and_fetch(&counters[3], 1);
    errno = ENOSPC;
    return 1;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define OF_DESCRIPTOR(type, name, declared, given) \
    type name declared { \
        REAL(name); \
        if (counts(descriptor) && refused()) return -1; \
        return real given; \
    }

OF_DESCRIPTOR(ssize_t, write, (int descriptor, const void *data, size_t size), (descriptor, data, size))

/* What is written over in place needs no room. */
static int within(int descriptor, off64_t end) {
    struct stat found;
    return !fstat(descriptor, &found) && end <= found.st_size;
}

#define WRITES_AT(name, offset) \
    ssize_t name(int descriptor, const void *data, size_t size, offset at) { \
        REAL(name); \
        if (counts(descriptor) && !within(descriptor, at + (off64_t)size) && refused()) return -1; \
        return real(descriptor, data, size, at); \
    }
WRITES_AT(pwrite, off_t)
WRITES_AT(pwrite64, off64_t)
OF_DESCRIPTOR(ssize_t, writev, (int descriptor, const struct iovec *parts, int count), (descriptor, parts, count))
OF_DESCRIPTOR(ssize_t, sendfile, (int descriptor, int from, off_t *at, size_t size), (descriptor, from, at, size))
OF_DESCRIPTOR(ssize_t, sendfile64, (int descriptor, int from, off64_t *at, size_t size), (descriptor, from, at, size))
OF_DESCRIPTOR(int, fsync, (int descriptor), (descriptor))
OF_DESCRIPTOR(int, fdatasync, (int descriptor), (descriptor))
OF_DESCRIPTOR(int, posix_fallocate, (int descriptor, off_t at, off_t size), (descriptor, at, size))

ssize_t copy_file_range(int from, off64_t *at, int descriptor, off64_t *to, size_t size, unsigned flags) {
    REAL(copy_file_range);
    if (counts(descriptor) && refused()) return -1;
    return real(from, at, descriptor, to, size, flags);
}

static int is_new(int at, const char *path, int flags) {
    struct stat found;
    if (!counters || !(flags & O_CREAT) || !path_counts(at, path)) return 0;
    return fstatat(at, path, &found, 0) != 0;
}

#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list more; \
        va_start(more, flags); \
        int mode = va_arg(more, int); \
        va_end(more); \
        if (is_new(AT_FDCWD, path, flags) && refused()) return -1; \
        return real(path, flags, mode); \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name) \
    int name(int at, const char *path, int flags, ...) { \
        REAL(name); \
        va_list more; \
        va_start(more, flags); \
        int mode = va_arg(more, int); \
        va_end(more); \
        if (is_new(at, path, flags) && refused()) return -1; \
        return real(at, path, flags, mode); \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

#define STREAM(name) \
    FILE *name(const char *path, const char *mode) { \
        REAL(name); \
        if (mode[0] != 'r' && is_new(AT_FDCWD, path, O_CREAT) && refused()) return 0; \
        return real(path, mode); \
    }
STREAM(fopen)
STREAM(fopen64)

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    struct stat found;
    if (path_counts(AT_FDCWD, path) && stat(path, &found) && refused()) return -1;
    return real(path, mode);
}

int symlink(const char *target, const char *path) {
    REAL(symlink);
    if (path_counts(AT_FDCWD, path) && refused()) return -1;
    return real(target, path);
}

int link(const char *from, const char *path) {
    REAL(link);
    if (path_counts(AT_FDCWD, path) && refused()) return -1;
    return real(from, path);
}

int linkat(int from_at, const char *from, int at, const char *path, int flags) {
    REAL(linkat);
    if (path_counts(at, path) && refused()) return -1;
    return real(from_at, from, at, path, flags);
}

#define STATVFS(name, structure) \
    int name(const char *path, struct structure *found) { \
        REAL(name); \
        int code = real(path, found); \
        if (!code && path_counts(AT_FDCWD, path) && full_now(counters[0] + 1)) { \
            __sync_add_and_fetch(&counters[0], 1); \
            found->f_bavail = found->f_bfree = 0; \
        } \
        return code; \
    }
STATVFS(statvfs, statvfs)
STATVFS(statvfs64, statvfs64)
