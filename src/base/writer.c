/*
 * writer.c - a file that appears whole or not at all: written under a temporary name beside the target, synced, renamed.
 * Callers: the GGUF and safetensors writers, convert, the program's own output files.
 */
#define _GNU_SOURCE
#include "base/base.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUFFER_BYTES ((size_t)1 << 20)

struct setun_writer {
    char *path, *temporary;
    int fd;
    uint64_t position;
    size_t filled;
    bool overwrite, failed;
    uint8_t *buffer;
};

static setun_status writer_free(setun_writer *w, setun_status status) {
    if (w->fd >= 0) close(w->fd);
    setun_free(w->path);
    setun_free(w->temporary);
    setun_free(w->buffer);
    setun_free(w);
    return status;
}

setun_status setun_writer_open(const char *path, bool overwrite, setun_writer **out) {
    *out = NULL;
    struct stat st;
    if (stat(path, &st) == 0) {
        if (S_ISDIR(st.st_mode)) return setun_fail(SETUN_ERROR_IO, "%s: is a folder, not a file to write", path);
        if (!overwrite) return setun_fail(SETUN_ERROR_IO, "%s: exists already; choose another name, or ask to overwrite it", path);
    }
    setun_writer *w = setun_calloc(1, sizeof *w);
    if (!w) return SETUN_ERROR_MEMORY;
    w->fd = -1;
    w->overwrite = overwrite;
    w->path = setun_strdup(path);
    w->temporary = setun_alloc(strlen(path) + 12);
    w->buffer = setun_alloc(BUFFER_BYTES);
    if (!w->path || !w->temporary || !w->buffer) return writer_free(w, SETUN_ERROR_MEMORY);
    sprintf(w->temporary, "%s.tmp.XXXXXX", path);
    w->fd = mkstemp(w->temporary);
    if (w->fd < 0) return writer_free(w, setun_fail(SETUN_ERROR_IO, "%s: cannot create: %s", w->temporary, strerror(errno)));
    mode_t mask = umask(0);
    umask(mask);
    fchmod(w->fd, 0666 & ~mask); /* mkstemp makes 0600 */
    *out = w;
    return SETUN_OK;
}

static setun_status put(setun_writer *w, const uint8_t *bytes, size_t count) {
    while (count) {
        ssize_t n = write(w->fd, bytes, count);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            w->failed = true;
            return setun_fail(SETUN_ERROR_IO, "%s: cannot write: %s", w->temporary, n < 0 ? strerror(errno) : "no progress");
        }
        bytes += n;
        count -= (size_t)n;
    }
    return SETUN_OK;
}

static setun_status flush(setun_writer *w) {
    size_t filled = w->filled;
    w->filled = 0;
    return put(w, w->buffer, filled);
}

setun_status setun_writer_write(setun_writer *w, const void *bytes, size_t count) {
    if (w->failed) return setun_fail(SETUN_ERROR_IO, "%s: an earlier write failed", w->temporary);
    w->position += count;
    if (count >= BUFFER_BYTES) {
        SETUN_TRY(flush(w));
        return put(w, bytes, count);
    }
    if (w->filled + count > BUFFER_BYTES) SETUN_TRY(flush(w));
    if (count) memcpy(w->buffer + w->filled, bytes, count);
    w->filled += count;
    return SETUN_OK;
}

setun_status setun_writer_pad(setun_writer *w, size_t alignment) {
    static const uint8_t zeros[4096];
    while (w->position % alignment) {
        size_t n = (size_t)(alignment - w->position % alignment);
        SETUN_TRY(setun_writer_write(w, zeros, n < sizeof zeros ? n : sizeof zeros));
    }
    return SETUN_OK;
}

uint64_t setun_writer_position(const setun_writer *w) { return w->position; }

/* The rename itself must survive a power cut too. */
static void sync_folder(const char *path) {
    char *folder = setun_strdup(path);
    if (!folder) return;
    char *slash = strrchr(folder, '/');
    if (slash) slash[slash == folder] = 0;
    int fd = open(slash ? folder : ".", O_RDONLY);
    if (fd >= 0) {
        fsync(fd);
        close(fd);
    }
    setun_free(folder);
}

setun_status setun_writer_commit(setun_writer *w) {
    setun_status status = w->failed ? setun_fail(SETUN_ERROR_IO, "%s: an earlier write failed", w->temporary) : flush(w);
    if (status == SETUN_OK && fsync(w->fd)) status = setun_fail(SETUN_ERROR_IO, "%s: cannot sync: %s", w->temporary, strerror(errno));
    int fd = w->fd;
    w->fd = -1;
    if (close(fd) && status == SETUN_OK) status = setun_fail(SETUN_ERROR_IO, "%s: cannot close: %s", w->temporary, strerror(errno));
    if (status == SETUN_OK) {
        /* link() refuses to replace a file that someone made meanwhile; rename() replaces at once */
        int failed = w->overwrite ? rename(w->temporary, w->path) : link(w->temporary, w->path);
        if (failed && !w->overwrite && errno != EEXIST) failed = rename(w->temporary, w->path); /* no hard links on this filesystem */
        else if (!failed && !w->overwrite) unlink(w->temporary);
        if (failed) status = setun_fail(SETUN_ERROR_IO, "%s: cannot rename %s to it: %s", w->path, w->temporary, strerror(errno));
        else sync_folder(w->path);
    }
    if (status != SETUN_OK) unlink(w->temporary);
    return writer_free(w, status);
}

void setun_writer_abort(setun_writer *w) {
    if (!w) return;
    unlink(w->temporary);
    writer_free(w, SETUN_OK);
}
