/* Loaded into a process with LD_PRELOAD: counts the calls that change a folder, and lets one of them go wrong.

   FAULTS_FOLDER  the folder, absolute; calls elsewhere are neither counted nor changed
   FAULTS_AT      the number of the call, from 1; 0 only counts
   FAULTS_CALL    if set, only calls of this name and path are numbered: "rename /folder/file"
   FAULTS_KIND    kill    SIGKILL before the call
                  torn    SIGKILL after it; a write has written the first half of its bytes
                  enospc  from this call on the disk is full: the first write still writes the first half of its bytes
                  eio     this call fails with EIO
   FAULTS_LOG     a file, outside of the folder, with a line for each counted call: its name and its path

   The variables are read by faults_arm(), which runs at the start of the process and may be called again after a fork.
   A call's half is what a crash or a full disk leaves of it; a write of one byte has no half. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum fault { NONE, KILL, TORN, ENOSPC_ON, EIO_ONCE };
enum verdict { PASS, HALF, HALF_AND_DIE, DO_AND_DIE, FAIL };

static char folder[PATH_MAX], only[PATH_MAX + 32];
static size_t folder_length;
static long at, calls;
static enum fault fault;
static int log_fd = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) void faults_arm(void) {
    const char *given = getenv("FAULTS_FOLDER"), *kind = getenv("FAULTS_KIND"), *number = getenv("FAULTS_AT");
    const char *log = getenv("FAULTS_LOG"), *call = getenv("FAULTS_CALL");
    folder_length = 0;
    calls = 0;
    snprintf(folder, sizeof folder, "%s", given ? given : "");
    snprintf(only, sizeof only, "%s", call ? call : "");
    at = number ? atol(number) : 0;
    fault = !kind ? NONE : !strcmp(kind, "kill") ? KILL : !strcmp(kind, "torn") ? TORN
          : !strcmp(kind, "enospc") ? ENOSPC_ON : !strcmp(kind, "eio") ? EIO_ONCE : NONE;
    if (log_fd >= 0) syscall(SYS_close, log_fd);
    log_fd = log ? (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666) : -1;
    folder_length = strlen(folder);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static int inside(const char *path) {
    return folder_length && !strncmp(path, folder, folder_length) && (path[folder_length] == '/' || !path[folder_length]);
}

/* The absolute path of a name beside a descriptor; of the descriptor itself without a name. */
static int path_of(int descriptor, const char *name, char *path) {
    char link[64];
    ssize_t length;
    if (name && name[0] == '/') return snprintf(path, PATH_MAX, "%s", name) < PATH_MAX;
    if (descriptor == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (name) return snprintf(path + length, (size_t)(PATH_MAX - length), "/%s", name) < PATH_MAX - length;
    return 1;
}

/* What is to happen to a call. `grows`: a full disk refuses it. */
static enum verdict judge(const char *call, int descriptor, const char *name, int writes, int grows) {
    char path[PATH_MAX], line[PATH_MAX + 32];
    enum verdict found = PASS;
    int before = errno, length, numbered = 1;
    if (!folder_length || !path_of(descriptor, name, path) || !inside(path)) {
        errno = before;
        return PASS;
    }
    length = snprintf(line, sizeof line, "%s %s", call, path);
    pthread_mutex_lock(&lock);
    if (!only[0] || !strcmp(line, only)) calls++;
    else numbered = 0;
    if (log_fd >= 0) {
        line[length] = '\n';
        syscall(SYS_write, log_fd, line, (size_t)length + 1);
    }
    if (fault == KILL && numbered && calls == at) die();
    if (fault == TORN && numbered && calls == at) found = writes ? HALF_AND_DIE : DO_AND_DIE;
    if (fault == ENOSPC_ON && grows && calls >= at) found = writes && numbered && calls == at ? HALF : FAIL;
    if (fault == EIO_ONCE && numbered && calls == at) found = FAIL;
    pthread_mutex_unlock(&lock);
    errno = fault == EIO_ONCE ? EIO : ENOSPC;
    if (found != FAIL) errno = before;
    return found;
}

/* A write of `size` bytes as far as the fault lets it: `call` uses `size`. */
#define WRITING(name_, descriptor, call)                                        \
    enum verdict found = judge(name_, descriptor, NULL, 1, 1);                  \
    ssize_t done;                                                               \
    if (found == HALF && size < 2) found = FAIL, errno = ENOSPC;                \
    if (found == FAIL) return -1;                                               \
    if (found == HALF || found == HALF_AND_DIE) size /= 2;                      \
    done = (call);                                                              \
    if (found == HALF_AND_DIE) die();                                           \
    return done;

/* Any other call. */
#define CHANGING(name_, descriptor, path, grows, call)                          \
    enum verdict found = judge(name_, descriptor, path, 0, grows);              \
    __typeof__(call) done;                                                      \
    if (found == FAIL) return -1;                                               \
    done = (call);                                                              \
    if (found == DO_AND_DIE) die();                                             \
    return done;

ssize_t write(int fd, const void *bytes, size_t size) { WRITING("write", fd, REAL(write)(fd, bytes, size)) }
ssize_t pwrite(int fd, const void *bytes, size_t size, off_t to) { WRITING("pwrite", fd, REAL(pwrite)(fd, bytes, size, to)) }
ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t to) { WRITING("pwrite", fd, REAL(pwrite64)(fd, bytes, size, to)) }
ssize_t sendfile(int fd, int from, off_t *start, size_t size) {
    WRITING("sendfile", fd, syscall(SYS_sendfile, fd, from, start, size))
}
ssize_t sendfile64(int fd, int from, off64_t *start, size_t size) {
    WRITING("sendfile", fd, syscall(SYS_sendfile, fd, from, start, size))
}
ssize_t copy_file_range(int from, off64_t *start, int fd, off64_t *to, size_t size, unsigned flags) {
    WRITING("copy_file_range", fd, syscall(SYS_copy_file_range, from, start, fd, to, size, flags))
}
/* Only its first piece is written if it is to be torn: a short count is allowed. */
ssize_t writev(int fd, const struct iovec *pieces, int count) {
    struct iovec first = count > 0 ? pieces[0] : (struct iovec){0};
    size_t size = first.iov_len;
    enum verdict found = judge("writev", fd, NULL, 1, 1);
    ssize_t done;
    if (found == HALF && size < 2) found = FAIL, errno = ENOSPC;
    if (found == FAIL) return -1;
    if (found == PASS) return REAL(writev)(fd, pieces, count);
    done = syscall(SYS_write, fd, first.iov_base, size / 2);
    if (found == HALF_AND_DIE) die();
    return done;
}

int fsync(int fd) { CHANGING("fsync", fd, NULL, 1, REAL(fsync)(fd)) }
int fdatasync(int fd) { CHANGING("fdatasync", fd, NULL, 1, REAL(fdatasync)(fd)) }
int ftruncate(int fd, off_t size) { CHANGING("ftruncate", fd, NULL, 0, REAL(ftruncate)(fd, size)) }
int ftruncate64(int fd, off64_t size) { CHANGING("ftruncate", fd, NULL, 0, REAL(ftruncate64)(fd, size)) }
int rename(const char *from, const char *to) { CHANGING("rename", AT_FDCWD, to, 0, REAL(rename)(from, to)) }
int renameat(int f, const char *from, int t, const char *to) { CHANGING("rename", t, to, 0, REAL(renameat)(f, from, t, to)) }
int renameat2(int f, const char *from, int t, const char *to, unsigned flags) {
    CHANGING("rename", t, to, 0, REAL(renameat2)(f, from, t, to, flags))
}
int link(const char *from, const char *to) { CHANGING("link", AT_FDCWD, to, 1, REAL(link)(from, to)) }
int linkat(int f, const char *from, int t, const char *to, int flags) {
    CHANGING("link", t, to, 1, REAL(linkat)(f, from, t, to, flags))
}
int symlink(const char *from, const char *to) { CHANGING("symlink", AT_FDCWD, to, 1, REAL(symlink)(from, to)) }
int unlink(const char *path) { CHANGING("unlink", AT_FDCWD, path, 0, REAL(unlink)(path)) }
int unlinkat(int fd, const char *path, int flags) { CHANGING("unlink", fd, path, 0, REAL(unlinkat)(fd, path, flags)) }
int rmdir(const char *path) { CHANGING("rmdir", AT_FDCWD, path, 0, REAL(rmdir)(path)) }
int mkdir(const char *path, mode_t mode) { CHANGING("mkdir", AT_FDCWD, path, 1, REAL(mkdir)(path, mode)) }
int mkdirat(int fd, const char *path, mode_t mode) { CHANGING("mkdir", fd, path, 1, REAL(mkdirat)(fd, path, mode)) }

/* An open for reading changes nothing. */
static int opened(int fd, const char *path, int flags, mode_t mode) {
    if ((flags & O_ACCMODE) == O_RDONLY && !(flags & (O_CREAT | O_TRUNC)))
        return (int)syscall(SYS_openat, fd, path, flags, mode);
    CHANGING("open", fd, path, 1, (int)syscall(SYS_openat, fd, path, flags, mode))
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = (mode_t)va_arg(rest, int); va_end(rest); }

int open(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return opened(AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int fd, const char *path, int flags, ...) { MODE(flags) return opened(fd, path, flags, mode); }
int openat64(int fd, const char *path, int flags, ...) { MODE(flags) return opened(fd, path, flags | O_LARGEFILE, mode); }
int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC | O_LARGEFILE, mode); }
