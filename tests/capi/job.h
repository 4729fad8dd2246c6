/* What the test programs share: checks, ranks that find each other by a file, and tables whose rows tell where they belong. */
#ifndef JOB_H
#define JOB_H

#include <rudder.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* How long anything may take before it counts as a hang, in seconds; valgrind makes all of it slow. */
#define PATIENCE 60

#define CHECK(condition)                                                                       \
    do {                                                                                       \
        if (!(condition)) {                                                                    \
            fprintf(stderr, "%s:%d: not so: %s (last error: %s)\n", __FILE__, __LINE__, #condition, rudder_last_error()); \
            exit(1);                                                                           \
        }                                                                                      \
    } while (0)

/* The call answers this status, and the last error has these words. */
#define REFUSED(call, expected, words) refused((call), (expected), (words), #call, __FILE__, __LINE__)
#define DONE(call) refused((call), RUDDER_DONE, "", #call, __FILE__, __LINE__)

static inline void refused(rudder_status found, rudder_status expected, const char *words, const char *call, const char *file, int line)
{
    if (found != expected || strstr(rudder_last_error(), words) == NULL) {
        fprintf(stderr, "%s:%d: %s: %s, where %s with `%s` was expected: %s\n", file, line, call, rudder_status_name(found),
                rudder_status_name(expected), words, rudder_last_error());
        exit(1);
    }
}

static inline void pause_ms(long ms)
{
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

/* Rank 0 creates the id and leaves it in a file; the others wait for it. */
static inline rudder_unique_id spread_id(const char *file, uint32_t rank)
{
    rudder_unique_id id;
    char partial[512];
    CHECK(snprintf(partial, sizeof partial, "%s.partial", file) < (int)sizeof partial);
    if (rank == 0) {
        DONE(rudder_unique_id_create(NULL, &id));
        FILE *to = fopen(partial, "wb");
        CHECK(to != NULL && fwrite(id.bytes, 1, sizeof id.bytes, to) == sizeof id.bytes && fclose(to) == 0);
        CHECK(rename(partial, file) == 0);
        return id;
    }
    FILE *from = NULL;
    for (int tries = 0; from == NULL && tries < PATIENCE * 100; tries++) {
        from = fopen(file, "rb");
        pause_ms(10);
    }
    CHECK(from != NULL && fread(id.bytes, 1, sizeof id.bytes, from) == sizeof id.bytes && fclose(from) == 0);
    return id;
}

/* Whether the trace that a rank has recorded, in PREFIX.RANK.trace, is there. Its bytes are the business of the Rust tests. */
static inline int has_trace(const char *prefix, uint32_t rank)
{
    char path[600], magic[8];
    CHECK(snprintf(path, sizeof path, "%s.%" PRIu32 ".trace", prefix, rank) < (int)sizeof path);
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        return 0;
    CHECK(fread(magic, 1, sizeof magic, file) == sizeof magic && fclose(file) == 0);
    return memcmp(magic, "rudtrace", sizeof magic) == 0;
}

enum { NODES = 600 };

static inline uint8_t byte_of(uint32_t table, int64_t node, uint64_t at)
{
    uint64_t mixed = ((uint64_t)node + 1 + ((uint64_t)table << 32)) * UINT64_C(0x9E3779B97F4A7C15);
    return (uint8_t)(mixed >> (at % 8 * 8)) ^ (uint8_t)(at * 31);
}

static inline void fill(uint32_t table, int64_t first, int64_t end, uint64_t row_bytes, uint8_t *rows)
{
    for (int64_t node = first; node < end; node++)
        for (uint64_t at = 0; at < row_bytes; at++)
            *rows++ = byte_of(table, node, at);
}

static inline void compare(uint32_t table, const int64_t *nodes, uint64_t count, uint64_t row_bytes, const void *rows)
{
    const uint8_t *found = (const uint8_t *)rows;
    for (uint64_t row = 0; row < count; row++)
        for (uint64_t at = 0; at < row_bytes; at++)
            if (*found++ != byte_of(table, nodes[row], at)) {
                fprintf(stderr, "table %" PRIu32 ": row %" PRIu64 ", of node %" PRId64 ", differs at byte %" PRIu64 "\n", table, row,
                        nodes[row], at);
                exit(1);
            }
}

/* A minibatch of nodes all over the table, some of them twice; `turn` makes another one. */
static inline void minibatch(int64_t *nodes, uint64_t count, uint64_t turn)
{
    for (uint64_t at = 0; at < count; at++)
        nodes[at] = (int64_t)((at * at * 7 + at * 31 + turn * 97) % NODES);
}

static inline void starts_of(int64_t *starts, uint32_t ranks)
{
    for (uint32_t rank = 0; rank <= ranks; rank++)
        starts[rank] = (int64_t)rank * NODES / ranks;
}

/* Every third node that another rank owns: what the buffer is for. */
static inline uint64_t halo_of(int64_t *halo, uint32_t *degree, const int64_t *starts, uint32_t rank)
{
    uint64_t count = 0;
    for (int64_t node = 0; node < NODES; node += 3)
        if (node < starts[rank] || node >= starts[rank + 1]) {
            degree[count] = (uint32_t)(node % 17);
            halo[count++] = node;
        }
    return count;
}

#endif
