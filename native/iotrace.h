/* Records what a process does to the files below one directory, for rebuilding what a power failure could leave.
 *
 * Preloaded (LD_PRELOAD), this library stands before the C library's file calls. It makes each call itself, by system
 * call, and appends what was done to the file TAILORBIRD_IOTRACE_FILE, when it concerns TAILORBIRD_IOTRACE_ROOT (an
 * absolute path without symbolic links). Failed calls are not recorded. Writes are recorded in the order they were made,
 * under a lock; a sync is two records, because only what was written before it began is durable once it has ended.
 *
 * A record, little-endian: u32 bytes of data, u8 operation, u8 0, u16 0, i32 process, i32 file descriptor, i64 a, i64 b,
 * data.
 *
 *     OPEN      a = flags                   data = path          SYNC_END  a = ticket of its begin
 *     WRITE     a = position                data = bytes         RENAME    data = path, zero, path
 *     TRUNCATE  a = size                                         UNLINK    data = path (a = 1: a directory)
 *     ALLOCATE  a = position, b = length    (mode 0 only)        MKDIR     data = path
 *     CLOSE                                                      MARK      data = what the process wants to say
 *     SYNC      a = ticket                                       MAPPED    shared and writable: what follows is not seen
 *
 * Not seen: stdio's own writes and stores through mappings. Whoever rebuilds compares the end with the real files.
 * sendfile and copy_file_range into a followed file fail with ENOSYS, upon which callers read and write.
 */
#ifndef TAILORBIRD_IOTRACE_H
#define TAILORBIRD_IOTRACE_H

#if defined(__linux__) && defined(__LP64__)

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    TB_OPEN = 1, TB_WRITE, TB_TRUNCATE, TB_ALLOCATE, TB_CLOSE, TB_SYNC, TB_SYNC_END,
    TB_RENAME, TB_UNLINK, TB_MKDIR, TB_MARK, TB_MAPPED
};

#define TB_FD_COUNT 65536
#define TB_PATH_BYTES (2 * PATH_MAX + 2)

typedef struct {
    uint32_t length;
    uint8_t operation, reserved1;
    uint16_t reserved2;
    int32_t process, fd;
    int64_t a, b;
} tb_record;

_Static_assert(sizeof(tb_record) == 32, "the reader unpacks 32 bytes");

static pthread_mutex_t tb_lock = PTHREAD_MUTEX_INITIALIZER;
static int tb_trace_fd = -1;
static char tb_root[PATH_MAX];
static size_t tb_root_bytes;
static int64_t tb_ticket;
static unsigned char tb_followed[TB_FD_COUNT];

/* Names of the C library are given by label: its headers may define them as inline functions. */
#define TB_EXPORT __attribute__((visibility("default"), used))
#define TB_ALSO_64(function, name) \
    TB_EXPORT extern __typeof(function) function##64 __asm__(name "64") __attribute__((alias(name)))

static void tb_append(int operation, int fd, int64_t a, int64_t b, const struct iovec* parts, int part_count,
                      size_t length) {
    int saved = errno;
    tb_record record = {(uint32_t)length, (uint8_t)operation, 0, 0, (int32_t)getpid(), fd, a, b};
    struct iovec head = {&record, sizeof record};
    if (syscall(SYS_writev, tb_trace_fd, &head, 1L) != (long)sizeof record) abort();
    for (int i = 0; i < part_count && length > 0; i++) {
        size_t wanted = parts[i].iov_len < length ? parts[i].iov_len : length;
        const char* from = (const char*)parts[i].iov_base;
        length -= wanted;
        while (wanted > 0) {
            long count = syscall(SYS_write, tb_trace_fd, from, wanted);
            if (count <= 0) abort();  /* A trace with a hole would accuse the program of what it did not do. */
            from += count;
            wanted -= (size_t)count;
        }
    }
    errno = saved;
}

static void tb_note(int operation, int fd, int64_t a, int64_t b, const void* data, size_t length) {
    struct iovec part = {(void*)(uintptr_t)data, length};
    tb_append(operation, fd, a, b, &part, 1, length);
}

static int tb_follows(int fd) { return tb_trace_fd >= 0 && fd >= 0 && fd < TB_FD_COUNT && tb_followed[fd]; }

static int tb_is_below_root(const char* path) {
    return strncmp(path, tb_root, tb_root_bytes) == 0 && (path[tb_root_bytes] == '/' || path[tb_root_bytes] == 0);
}

/* Writes the absolute form of `path` seen from `directory_fd`; returns its length, 0 when it is not below the root. */
static size_t tb_absolute(int directory_fd, const char* path, char* out) {
    if (tb_trace_fd < 0 || path == NULL || strlen(path) >= PATH_MAX) return 0;
    out[0] = 0;
    if (path[0] != '/') {
        char link[64];
        if (directory_fd == AT_FDCWD) strcpy(link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", directory_fd);
        long count = syscall(SYS_readlinkat, AT_FDCWD, link, out, (size_t)PATH_MAX - 1);
        if (count <= 0) return 0;
        out[count] = '/';
        out[count + 1] = 0;
    }
    strcat(out, path);
    return tb_is_below_root(out) ? strlen(out) : 0;
}

static int tb_do_open(int directory_fd, const char* path, int flags, mode_t mode) {
    if (tb_trace_fd < 0) return (int)syscall(SYS_openat, directory_fd, path, flags, mode);
    pthread_mutex_lock(&tb_lock);
    int fd = (int)syscall(SYS_openat, directory_fd, path, flags, mode);
    if (fd >= 0 && fd < TB_FD_COUNT) {
        int saved = errno;
        char link[64], real[PATH_MAX];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        long count = syscall(SYS_readlinkat, AT_FDCWD, link, real, sizeof real - 1);
        tb_followed[fd] = 0;
        if (count > 0) {
            real[count] = 0;
            if (tb_is_below_root(real)) {
                tb_followed[fd] = 1;
                tb_note(TB_OPEN, fd, flags, 0, real, (size_t)count);
            }
        }
        errno = saved;
    }
    pthread_mutex_unlock(&tb_lock);
    return fd;
}

#define TB_OPEN_MODE(flags, mode)                               \
    mode_t mode = 0;                                            \
    if ((flags) & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) {     \
        va_list rest;                                           \
        va_start(rest, flags);                                  \
        mode = (mode_t)va_arg(rest, unsigned int);              \
        va_end(rest);                                           \
    }

TB_EXPORT int tb_open(const char* path, int flags, ...) __asm__("open");
TB_EXPORT int tb_open(const char* path, int flags, ...) {
    TB_OPEN_MODE(flags, mode)
    return tb_do_open(AT_FDCWD, path, flags, mode);
}
TB_ALSO_64(tb_open, "open");
TB_EXPORT int tb_openat(int at, const char* path, int flags, ...) __asm__("openat");
TB_EXPORT int tb_openat(int at, const char* path, int flags, ...) {
    TB_OPEN_MODE(flags, mode)
    return tb_do_open(at, path, flags, mode);
}
TB_ALSO_64(tb_openat, "openat");
TB_EXPORT int tb_creat(const char* path, mode_t mode) __asm__("creat");
TB_EXPORT int tb_creat(const char* path, mode_t mode) {
    return tb_do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}
TB_ALSO_64(tb_creat, "creat");

TB_EXPORT int tb_close(int fd) __asm__("close");
TB_EXPORT int tb_close(int fd) {
    if (!tb_follows(fd)) return (int)syscall(SYS_close, fd);
    pthread_mutex_lock(&tb_lock);
    tb_followed[fd] = 0;
    tb_note(TB_CLOSE, fd, 0, 0, NULL, 0);
    int result = (int)syscall(SYS_close, fd);
    pthread_mutex_unlock(&tb_lock);
    return result;
}

/* Writes at `position`, or where the file stands when it is negative. */
static ssize_t tb_do_write(int fd, const struct iovec* parts, int part_count, int64_t position) {
    int follows = tb_follows(fd);
    if (follows) pthread_mutex_lock(&tb_lock);
    /* On 64 bits the kernel takes the position as low and high halves, the high one unused. */
    ssize_t count = position < 0 ? syscall(SYS_writev, fd, parts, part_count)
                                 : syscall(SYS_pwritev, fd, parts, part_count, position, 0L);
    if (follows) {
        if (count > 0) {
            if (position < 0) position = (int64_t)syscall(SYS_lseek, fd, 0L, SEEK_CUR) - count;
            tb_append(TB_WRITE, fd, position, 0, parts, part_count, (size_t)count);
        }
        pthread_mutex_unlock(&tb_lock);
    }
    return count;
}

static ssize_t tb_write_one(int fd, const void* data, size_t length, int64_t position) {
    if (!tb_follows(fd))
        return position < 0 ? syscall(SYS_write, fd, data, length) : syscall(SYS_pwrite64, fd, data, length, position);
    struct iovec part = {(void*)(uintptr_t)data, length};
    return tb_do_write(fd, &part, 1, position);
}

TB_EXPORT ssize_t tb_write(int fd, const void* data, size_t length) __asm__("write");
TB_EXPORT ssize_t tb_write(int fd, const void* data, size_t length) {
    return tb_write_one(fd, data, length, -1);
}
TB_EXPORT ssize_t tb_pwrite(int fd, const void* data, size_t length, int64_t at) __asm__("pwrite");
TB_EXPORT ssize_t tb_pwrite(int fd, const void* data, size_t length, int64_t at) {
    return tb_write_one(fd, data, length, at);
}
TB_ALSO_64(tb_pwrite, "pwrite");
TB_EXPORT ssize_t tb_writev(int fd, const struct iovec* parts, int count) __asm__("writev");
TB_EXPORT ssize_t tb_writev(int fd, const struct iovec* parts, int count) {
    return tb_do_write(fd, parts, count, -1);
}
TB_EXPORT ssize_t tb_pwritev(int fd, const struct iovec* parts, int count, int64_t at) __asm__("pwritev");
TB_EXPORT ssize_t tb_pwritev(int fd, const struct iovec* parts, int count, int64_t at) {
    return tb_do_write(fd, parts, count, at);
}
TB_ALSO_64(tb_pwritev, "pwritev");

static ssize_t tb_do_sendfile(int out, int in, int64_t* at, size_t length) {
    if (tb_follows(out)) { errno = ENOSYS; return -1; }
    return syscall(SYS_sendfile, out, in, at, length);
}
TB_EXPORT ssize_t tb_sendfile(int out, int in, int64_t* at, size_t length) __asm__("sendfile");
TB_EXPORT ssize_t tb_sendfile(int out, int in, int64_t* at, size_t length) {
    return tb_do_sendfile(out, in, at, length);
}
TB_ALSO_64(tb_sendfile, "sendfile");
TB_EXPORT ssize_t tb_copy_file_range(int in, int64_t* from, int out, int64_t* to, size_t length, unsigned flags)
    __asm__("copy_file_range");
TB_EXPORT ssize_t tb_copy_file_range(int in, int64_t* from, int out, int64_t* to, size_t length, unsigned flags) {
    if (tb_follows(out)) { errno = ENOSYS; return -1; }
    return syscall(SYS_copy_file_range, in, from, out, to, length, flags);
}

static int tb_do_truncate(int fd, int64_t size) {
    if (!tb_follows(fd)) return (int)syscall(SYS_ftruncate, fd, size);
    pthread_mutex_lock(&tb_lock);
    int result = (int)syscall(SYS_ftruncate, fd, size);
    if (result == 0) tb_note(TB_TRUNCATE, fd, size, 0, NULL, 0);
    pthread_mutex_unlock(&tb_lock);
    return result;
}
TB_EXPORT int tb_ftruncate(int fd, int64_t size) __asm__("ftruncate");
TB_EXPORT int tb_ftruncate(int fd, int64_t size) {
    return tb_do_truncate(fd, size);
}
TB_ALSO_64(tb_ftruncate, "ftruncate");

static int tb_do_allocate(int fd, int mode, int64_t at, int64_t length) {
    if (!tb_follows(fd)) return (int)syscall(SYS_fallocate, fd, mode, at, length);
    if (mode != 0) { errno = EOPNOTSUPP; return -1; }
    pthread_mutex_lock(&tb_lock);
    int result = (int)syscall(SYS_fallocate, fd, mode, at, length);
    if (result == 0) tb_note(TB_ALLOCATE, fd, at, length, NULL, 0);
    pthread_mutex_unlock(&tb_lock);
    return result;
}
TB_EXPORT int tb_fallocate(int fd, int mode, int64_t at, int64_t length) __asm__("fallocate");
TB_EXPORT int tb_fallocate(int fd, int mode, int64_t at, int64_t length) {
    return tb_do_allocate(fd, mode, at, length);
}
TB_ALSO_64(tb_fallocate, "fallocate");
TB_EXPORT int tb_posix_fallocate(int fd, int64_t at, int64_t length) __asm__("posix_fallocate");
TB_EXPORT int tb_posix_fallocate(int fd, int64_t at, int64_t length) {
    return tb_do_allocate(fd, 0, at, length) ? errno : 0;
}
TB_ALSO_64(tb_posix_fallocate, "posix_fallocate");

static int tb_do_sync(int fd, long call) {
    if (!tb_follows(fd)) return (int)syscall(call, fd);
    pthread_mutex_lock(&tb_lock);
    int64_t ticket = ++tb_ticket;
    tb_note(TB_SYNC, fd, ticket, 0, NULL, 0);
    pthread_mutex_unlock(&tb_lock);
    int result = (int)syscall(call, fd);
    if (result == 0) {
        pthread_mutex_lock(&tb_lock);
        tb_note(TB_SYNC_END, fd, ticket, 0, NULL, 0);
        pthread_mutex_unlock(&tb_lock);
    }
    return result;
}
TB_EXPORT int tb_fsync(int fd) __asm__("fsync");
TB_EXPORT int tb_fsync(int fd) {
    return tb_do_sync(fd, SYS_fsync);
}
TB_EXPORT int tb_fdatasync(int fd) __asm__("fdatasync");
TB_EXPORT int tb_fdatasync(int fd) {
    return tb_do_sync(fd, SYS_fdatasync);
}

static int tb_do_rename(int from_at, const char* from, int to_at, const char* to, unsigned flags) {
    char both[2 * TB_PATH_BYTES];
    size_t from_bytes = tb_absolute(from_at, from, both);
    if (from_bytes == 0) return (int)syscall(SYS_renameat2, from_at, from, to_at, to, flags);
    size_t to_bytes = tb_absolute(to_at, to, both + from_bytes + 1);
    if (to_bytes == 0 || flags & ~1u) { errno = EXDEV; return -1; }  /* A move out of the root could not be rebuilt. */
    pthread_mutex_lock(&tb_lock);
    int result = (int)syscall(SYS_renameat2, from_at, from, to_at, to, flags);
    if (result == 0) tb_note(TB_RENAME, -1, 0, 0, both, from_bytes + 1 + to_bytes);
    pthread_mutex_unlock(&tb_lock);
    return result;
}
TB_EXPORT int tb_rename(const char* from, const char* to) __asm__("rename");
TB_EXPORT int tb_rename(const char* from, const char* to) {
    return tb_do_rename(AT_FDCWD, from, AT_FDCWD, to, 0);
}
TB_EXPORT int tb_renameat(int from_at, const char* from, int to_at, const char* to) __asm__("renameat");
TB_EXPORT int tb_renameat(int from_at, const char* from, int to_at, const char* to) {
    return tb_do_rename(from_at, from, to_at, to, 0);
}
TB_EXPORT int tb_renameat2(int from_at, const char* from, int to_at, const char* to, unsigned flags)
    __asm__("renameat2");
TB_EXPORT int tb_renameat2(int from_at, const char* from, int to_at, const char* to, unsigned flags) {
    return tb_do_rename(from_at, from, to_at, to, flags);
}

static int tb_do_unlink(int at, const char* path, int flags) {
    char name[TB_PATH_BYTES];
    size_t length = tb_absolute(at, path, name);
    if (length == 0) return (int)syscall(SYS_unlinkat, at, path, flags);
    pthread_mutex_lock(&tb_lock);
    int result = (int)syscall(SYS_unlinkat, at, path, flags);
    if (result == 0) tb_note(TB_UNLINK, -1, (flags & AT_REMOVEDIR) != 0, 0, name, length);
    pthread_mutex_unlock(&tb_lock);
    return result;
}
TB_EXPORT int tb_unlink(const char* path) __asm__("unlink");
TB_EXPORT int tb_unlink(const char* path) {
    return tb_do_unlink(AT_FDCWD, path, 0);
}
TB_EXPORT int tb_unlinkat(int at, const char* path, int flags) __asm__("unlinkat");
TB_EXPORT int tb_unlinkat(int at, const char* path, int flags) {
    return tb_do_unlink(at, path, flags);
}
TB_EXPORT int tb_remove_directory(const char* path) __asm__("rmdir");
TB_EXPORT int tb_remove_directory(const char* path) {
    return tb_do_unlink(AT_FDCWD, path, AT_REMOVEDIR);
}

static int tb_do_mkdir(int at, const char* path, mode_t mode) {
    char name[TB_PATH_BYTES];
    size_t length = tb_absolute(at, path, name);
    if (length == 0) return (int)syscall(SYS_mkdirat, at, path, mode);
    pthread_mutex_lock(&tb_lock);
    int result = (int)syscall(SYS_mkdirat, at, path, mode);
    if (result == 0) tb_note(TB_MKDIR, -1, 0, 0, name, length);
    pthread_mutex_unlock(&tb_lock);
    return result;
}
TB_EXPORT int tb_mkdir(const char* path, mode_t mode) __asm__("mkdir");
TB_EXPORT int tb_mkdir(const char* path, mode_t mode) {
    return tb_do_mkdir(AT_FDCWD, path, mode);
}
TB_EXPORT int tb_mkdirat(int at, const char* path, mode_t mode) __asm__("mkdirat");
TB_EXPORT int tb_mkdirat(int at, const char* path, mode_t mode) {
    return tb_do_mkdir(at, path, mode);
}

static void* tb_do_mmap(void* address, size_t length, int protection, int flags, int fd, int64_t at) {
    if (tb_follows(fd) && (protection & PROT_WRITE) && (flags & MAP_SHARED)) {
        pthread_mutex_lock(&tb_lock);
        tb_note(TB_MAPPED, fd, 0, 0, NULL, 0);
        pthread_mutex_unlock(&tb_lock);
    }
    return (void*)syscall(SYS_mmap, address, length, protection, flags, fd, at);
}
TB_EXPORT void* tb_mmap(void* address, size_t length, int protection, int flags, int fd, int64_t at) __asm__("mmap");
TB_EXPORT void* tb_mmap(void* address, size_t length, int protection, int flags, int fd, int64_t at) {
    return tb_do_mmap(address, length, protection, flags, fd, at);
}
TB_ALSO_64(tb_mmap, "mmap");

/* Following begins only where this library was preloaded; imported, its names stand before nobody's. */
__attribute__((constructor)) static void tb_begin(void) {
    const char* root = getenv("TAILORBIRD_IOTRACE_ROOT");
    const char* file = getenv("TAILORBIRD_IOTRACE_FILE");
    if (root == NULL || file == NULL || strlen(root) >= sizeof tb_root) return;
    if (dlsym(RTLD_DEFAULT, "fdatasync") != (void*)(uintptr_t)tb_fdatasync) return;
    tb_root_bytes = strlen(strcpy(tb_root, root));
    tb_trace_fd = (int)syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (tb_trace_fd < 0) abort();
    unsetenv("LD_PRELOAD");  /* Processes started from here are other programs, which this one does not speak for. */
}

static int tb_is_active(void) { return tb_trace_fd >= 0; }

static void tb_mark(const char* data, Py_ssize_t length) {
    pthread_mutex_lock(&tb_lock);
    tb_note(TB_MARK, -1, 0, 0, data, (size_t)length);
    pthread_mutex_unlock(&tb_lock);
}

#else

static int tb_is_active(void) { return 0; }
static void tb_mark(const char* data, Py_ssize_t length) { (void)data; (void)length; }

#endif
#endif
