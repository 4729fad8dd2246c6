/*
 * Goal: whatever a program does wrong, the call says so by the right status and in words, does nothing else, and leaves its results alone.
 * Method: every mistake that can be made, on jobs of one rank, and of two as threads where rows must travel.
 *
 *   misuse FOLDER
 */
#include "job.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/wait.h>

enum { WIDTH = 12, OWN = NODES };

/* What results hold before a call that is to leave them alone. */
#define UNTOUCHED ((void *)(uintptr_t)0x5A5A5A5A)

static const char *folder;
static uint8_t own_rows[OWN * WIDTH];
static const int64_t starts[2] = {0, OWN};

static rudder_table_spec table_spec(uint32_t id)
{
    fill(id, 0, OWN, WIDTH, own_rows);
    rudder_table_spec spec = {.struct_size = sizeof spec, .id = id, .partitions = 1, .starts = starts, .row_bytes = WIDTH,
                              .rows = own_rows, .bytes = sizeof own_rows};
    return spec;
}

static rudder_status create_with(const char *settings, rudder_comm **comm)
{
    rudder_unique_id id;
    rudder_config config = {.struct_size = sizeof config, .settings = settings};
    DONE(rudder_unique_id_create(NULL, &id));
    return rudder_comm_create(&id, 1, 0, &config, comm);
}

static rudder_comm *create(void)
{
    rudder_comm *comm = NULL;
    DONE(create_with("{\"rows_max\": 50, \"rows_buffers\": 2, \"requests\": 2, \"tickets\": 2}", &comm));
    return comm;
}

static rudder_comm *create_started(rudder_table **table)
{
    rudder_comm *comm = create();
    rudder_table_spec spec = table_spec(4);
    DONE(rudder_table_create(comm, &spec, table));
    DONE(rudder_comm_start(comm));
    return comm;
}

static void destroy(rudder_comm *comm)
{
    DONE(rudder_comm_shutdown(comm));
    DONE(rudder_comm_destroy(comm));
}

static void statuses_and_versions(void)
{
    CHECK(strcmp(rudder_last_error(), "") == 0);
    CHECK(RUDDER_ABI_MATCHES() && strcmp(rudder_version(), "") != 0);
    CHECK(strcmp(rudder_status_name(RUDDER_DONE), "RUDDER_DONE") == 0 && strcmp(rudder_status_name(RUDDER_PANIC), "RUDDER_PANIC") == 0);
    CHECK(strcmp(rudder_status_name(-99), "unknown") == 0 && strcmp(rudder_status_name(INT32_MAX), "unknown") == 0);
/* A program that was built with the header of another version. */
#undef RUDDER_ABI_VERSION
#define RUDDER_ABI_VERSION 2
    CHECK(!RUDDER_ABI_MATCHES());
#undef RUDDER_ABI_VERSION
#define RUDDER_ABI_VERSION 1
}

static void nulls(void)
{
    rudder_table *table = NULL;
    rudder_comm *comm = create_started(&table);
    rudder_unique_id id;
    rudder_table_spec spec = table_spec(5);
    rudder_rows *rows = NULL;
    rudder_registration *registration = NULL;
    rudder_request *request = NULL;
    rudder_ticket ticket = 77;
    rudder_status error = 77;
    int64_t node = 0;
    uint8_t row[WIDTH];
    uint64_t bytes = 77;
    void *data = UNTOUCHED;
    rudder_comm_counts of_comm = {.struct_size = sizeof of_comm};
    rudder_table_counts of_table = {.struct_size = sizeof of_table};
    rudder_step_times times = {.struct_size = sizeof times};
    DONE(rudder_unique_id_create(NULL, &id));
    DONE(rudder_rows_create(table, 1, &rows));
    DONE(rudder_registration_create(comm, row, sizeof row, &registration));

#define NULLED(call, name) REFUSED(call, RUDDER_NULL_ARGUMENT, name " is NULL")
    NULLED(rudder_unique_id_create(NULL, NULL), "id");
    NULLED(rudder_comm_create(NULL, 1, 0, NULL, &comm), "id");
    NULLED(rudder_comm_create(&id, 1, 0, NULL, NULL), "comm");
    NULLED(rudder_comm_start(NULL), "comm");
    NULLED(rudder_comm_abort(NULL), "comm");
    NULLED(rudder_comm_async_error(NULL, &error), "comm");
    NULLED(rudder_comm_async_error(comm, NULL), "error");
    NULLED(rudder_comm_shutdown(NULL), "comm");
    NULLED(rudder_comm_pause(NULL, 1), "comm");
    NULLED(rudder_comm_wait_idle(NULL, 1), "comm");
    NULLED(rudder_comm_mark_step(NULL, &times), "comm");
    NULLED(rudder_comm_mark_step(comm, NULL), "rudder_step_times");
    NULLED(rudder_comm_mark_epoch_end(NULL), "comm");
    NULLED(rudder_comm_stats(NULL, &of_comm), "comm");
    NULLED(rudder_comm_stats(comm, NULL), "rudder_comm_counts");
    NULLED(rudder_table_create(NULL, &spec, &table), "comm");
    NULLED(rudder_table_create(comm, NULL, &table), "rudder_table_spec");
    NULLED(rudder_table_create(comm, &spec, NULL), "table");
    NULLED(rudder_table_stats(NULL, &of_table), "table");
    NULLED(rudder_table_stats(table, NULL), "rudder_table_counts");
    NULLED(rudder_announce(NULL, 0, &table, 1, &node, 1, &ticket), "comm");
    NULLED(rudder_announce(comm, 0, NULL, 1, &node, 1, &ticket), "tables");
    NULLED(rudder_announce(comm, 0, &table, 1, NULL, 1, &ticket), "nodes");
    NULLED(rudder_announce(comm, 0, &table, 1, &node, 1, NULL), "ticket");
    rudder_table *none = NULL;
    NULLED(rudder_announce(comm, 0, &none, 1, &node, 1, &ticket), "a table");
    NULLED(rudder_forget(NULL, 1), "comm");
    NULLED(rudder_forget_stream(NULL, 1), "comm");
    NULLED(rudder_gather(NULL, &node, 1, 0, row, WIDTH), "table");
    NULLED(rudder_gather(table, NULL, 1, 0, row, WIDTH), "nodes");
    NULLED(rudder_gather(table, &node, 1, 0, NULL, WIDTH), "rows");
    NULLED(rudder_rows_create(NULL, 1, &rows), "table");
    NULLED(rudder_rows_create(table, 1, NULL), "rows");
    NULLED(rudder_rows_data(NULL, &data, &bytes), "rows");
    NULLED(rudder_rows_data(rows, NULL, &bytes), "data");
    NULLED(rudder_rows_data(rows, &data, NULL), "bytes");
    NULLED(rudder_registration_create(NULL, row, 1, &registration), "comm");
    NULLED(rudder_registration_create(comm, NULL, 1, &registration), "base");
    NULLED(rudder_registration_create(comm, row, 1, NULL), "registration");
    NULLED(rudder_registration_rows(NULL, 0, 1, 1, &rows), "registration");
    NULLED(rudder_registration_rows(registration, 0, 1, 1, NULL), "rows");
    NULLED(rudder_request_start(NULL, &node, 1, 0, rows, &request), "table");
    NULLED(rudder_request_start(table, NULL, 1, 0, rows, &request), "nodes");
    NULLED(rudder_request_start(table, &node, 1, 0, NULL, &request), "rows");
    NULLED(rudder_request_start(table, &node, 1, 0, rows, NULL), "request");
    NULLED(rudder_request_test(NULL), "request");
    NULLED(rudder_request_wait(NULL), "request");
    CHECK(ticket == 77 && error == 77 && bytes == 77 && data == UNTOUCHED && request == NULL);

    /* What succeeds leaves the last error alone. */
    char before[512];
    CHECK(snprintf(before, sizeof before, "%s", rudder_last_error()) > 0);
    DONE(rudder_gather(table, &node, 1, 0, row, WIDTH));
    DONE(rudder_comm_mark_step(comm, &times));
    DONE(rudder_comm_destroy(NULL));
    DONE(rudder_table_destroy(NULL));
    DONE(rudder_rows_destroy(NULL));
    DONE(rudder_registration_destroy(NULL));
    DONE(rudder_request_destroy(NULL));
    CHECK(strcmp(before, rudder_last_error()) == 0);
    destroy(comm);
}

static void structs_of_other_versions(void)
{
    rudder_comm *comm = create();
    rudder_table *table = (rudder_table *)UNTOUCHED;
    struct {
        rudder_table_spec spec;
        uint64_t later;
    } newer = {.spec = table_spec(4)};
    newer.spec.struct_size = 0;
    REFUSED(rudder_table_create(comm, &newer.spec, &table), RUDDER_ABI, "struct_size 0 of rudder_table_spec");
    newer.spec.struct_size = sizeof newer.spec - 8;
    REFUSED(rudder_table_create(comm, &newer.spec, &table), RUDDER_ABI, "sizeof(rudder_table_spec)");
    newer.spec.struct_size = UINT64_MAX;
    REFUSED(rudder_table_create(comm, &newer.spec, &table), RUDDER_ABI, "sizeof(rudder_table_spec)");
    newer.spec.struct_size = sizeof newer;
    newer.later = 1;
    REFUSED(rudder_table_create(comm, &newer.spec, &table), RUDDER_ABI, "use a newer one");
    CHECK(table == (rudder_table *)UNTOUCHED);
    newer.later = 0;
    DONE(rudder_table_create(comm, &newer.spec, &table));
    DONE(rudder_comm_start(comm));

    rudder_config config = {.struct_size = 8};
    rudder_unique_id id;
    rudder_comm *other = NULL;
    DONE(rudder_unique_id_create(NULL, &id));
    REFUSED(rudder_comm_create(&id, 1, 0, &config, &other), RUDDER_ABI, "struct_size 8 of rudder_config");

    struct {
        rudder_comm_counts counts;
        uint64_t later;
    } counts;
    counts.counts.struct_size = 16;
    REFUSED(rudder_comm_stats(comm, &counts.counts), RUDDER_ABI, "rudder_comm_counts");
    counts.counts.struct_size = sizeof counts;
    counts.later = 7;
    DONE(rudder_comm_stats(comm, &counts.counts));
    CHECK(counts.later == 0 && counts.counts.struct_size == sizeof counts && strcmp(counts.counts.transport, "tcp") == 0);
    rudder_table_counts of_table = {.struct_size = 0};
    REFUSED(rudder_table_stats(table, &of_table), RUDDER_ABI, "struct_size 0");
    rudder_step_times times = {.struct_size = sizeof times - 8};
    REFUSED(rudder_comm_mark_step(comm, &times), RUDDER_ABI, "sizeof(rudder_step_times)");
    destroy(comm);
}

static void ids_and_settings(void)
{
    rudder_unique_id id, wrong;
    rudder_comm *comm = (rudder_comm *)UNTOUCHED;
    memset(&id, 0x5A, sizeof id);
    REFUSED(rudder_unique_id_create("everywhere", &id), RUDDER_ARGUMENT, "listen is `everywhere`");
    REFUSED(rudder_unique_id_create("0.0.0.0", &id), RUDDER_ARGUMENT, "every interface");
    REFUSED(rudder_unique_id_create("192.0.2.1:1", &id), RUDDER_ARGUMENT, "cannot listen on 192.0.2.1:1");
    REFUSED(rudder_unique_id_create("\xff", &id), RUDDER_ARGUMENT, "listen is not UTF-8");
    CHECK(id.bytes[0] == 0x5A && id.bytes[63] == 0x5A);
    REFUSED(rudder_comm_create(&id, 1, 0, NULL, &comm), RUDDER_ARGUMENT, "not a unique id");
    DONE(rudder_unique_id_create("127.0.0.1", &id));
    wrong = id;
    wrong.bytes[4] ^= 0x40;
    REFUSED(rudder_comm_create(&wrong, 1, 0, NULL, &comm), RUDDER_ARGUMENT, "format");
    wrong = id;
    wrong.bytes[40] ^= 1;
    REFUSED(rudder_comm_create(&wrong, 1, 0, NULL, &comm), RUDDER_BOOTSTRAP, "in the process that created the unique id");
    REFUSED(rudder_comm_create(&id, 1, 1, NULL, &comm), RUDDER_ARGUMENT, "rank 1 of a job of 1 ranks");
    REFUSED(rudder_comm_create(&id, 0, 0, NULL, &comm), RUDDER_ARGUMENT, "of a job of 0 ranks");
    REFUSED(rudder_comm_create(&id, UINT32_MAX, 0, NULL, &comm), RUDDER_ARGUMENT, "65536 is the most");
    REFUSED(create_with("{\"buffer\": ", &comm), RUDDER_CONFIG, "EOF");
    REFUSED(create_with("[]", &comm), RUDDER_CONFIG, "expected a JSON object");
    REFUSED(create_with("{\"bufer\": \"25%\"}", &comm), RUDDER_CONFIG, "unknown field `bufer`");
    REFUSED(create_with("{\"buffer\": \"a lot\"}", &comm), RUDDER_CONFIG, "buffer size `a lot`");
    REFUSED(create_with("{\"tickets\": 65}", &comm), RUDDER_CONFIG, "tickets = 65 is outside 1..=64");
    REFUSED(create_with("{\"controller\": \"periodic:4\"}", &comm), RUDDER_CONFIG, "choose policy rudder");
    REFUSED(create_with("\xff", &comm), RUDDER_ARGUMENT, "settings is not UTF-8");
    REFUSED(rudder_comm_create(&id, 2, 0, &(rudder_config){sizeof(rudder_config), "{\"collective_timeout\": 0.2}"}, &comm),
            RUDDER_BOOTSTRAP, "rank 1 of 2 did not join");
    CHECK(comm == (rudder_comm *)UNTOUCHED);

    CHECK(setenv("RUDDER_BUFFER", "plenty", 1) == 0);
    REFUSED(create_with(NULL, &comm), RUDDER_CONFIG, "RUDDER_BUFFER=plenty");
    CHECK(unsetenv("RUDDER_BUFFER") == 0);
    DONE(create_with("{\"transport\": \"carrier pigeon\"}", &comm));
    REFUSED(rudder_comm_start(comm), RUDDER_CONFIG, "no transport is named 'carrier pigeon'");
    REFUSED(rudder_comm_start(comm), RUDDER_CLOSED, "the start has failed");
    DONE(rudder_comm_destroy(comm));
}

static void tables(void)
{
    char path[512];
    rudder_comm *comm = create();
    rudder_table *table = (rudder_table *)UNTOUCHED;
    rudder_table_spec good = table_spec(1), spec;
    int64_t list[4];
    uint32_t degree[4] = {0, 0, 0, 0};
#define WRONG(change, status, words)                             \
    do {                                                         \
        spec = good;                                             \
        change;                                                  \
        REFUSED(rudder_table_create(comm, &spec, &table), status, words); \
    } while (0)
    WRONG(spec.starts = NULL, RUDDER_NULL_ARGUMENT, "starts is NULL");
    WRONG(spec.partitions = 0, RUDDER_PARTITION_BOOK, "name no partition");
    WRONG((list[0] = 0, list[1] = -5, spec.starts = list), RUDDER_PARTITION_BOOK, "negative");
    WRONG((list[0] = 1, list[1] = 5, spec.starts = list), RUDDER_PARTITION_BOOK, "not at 0");
    WRONG((list[0] = 0, list[1] = 5, list[2] = 4, spec.starts = list, spec.partitions = 2), RUDDER_PARTITION_BOOK, "ends before it");
    WRONG(spec.starts = (const int64_t *)((const char *)starts + 1), RUDDER_ARGUMENT, "not aligned");
    WRONG(spec.partition = 1, RUDDER_ARGUMENT, "partition 1 of 1 partitions");
    WRONG(spec.row_bytes = 0, RUDDER_ARGUMENT, "rows of 0 bytes");
    WRONG(spec.row_bytes = UINT64_MAX, RUDDER_ARGUMENT, "beyond all memory");
    WRONG(spec.row_bytes = WIDTH + 1, RUDDER_ARGUMENT, "bytes of rows, but partition 0 of table 1 has 600 rows of 13 bytes");
    WRONG(spec.bytes--, RUDDER_ARGUMENT, "7199 bytes of rows");
    WRONG(spec.bytes = UINT64_MAX, RUDDER_ARGUMENT, "beyond all memory");
    WRONG(spec.rows = NULL, RUDDER_ARGUMENT, "neither rows nor path");
    WRONG(spec.path = "/dev/null", RUDDER_ARGUMENT, "both rows and path");
    WRONG((spec.rows = NULL, spec.path = "/nowhere/at/all"), RUDDER_TABLE_FILE, "/nowhere/at/all");
    WRONG((spec.rows = NULL, spec.path = "/dev/zero"), RUDDER_TABLE_FILE, "not a regular file");
    CHECK(snprintf(path, sizeof path, "%s/short", folder) > 0);
    FILE *file = fopen(path, "wb");
    CHECK(file != NULL && fputs("short", file) >= 0 && fclose(file) == 0);
    WRONG((spec.rows = NULL, spec.path = path), RUDDER_TABLE_FILE, "it has 5 bytes, but partition 0 of table 1 has 600 rows");
    WRONG((spec.halo = NULL, spec.halo_nodes = 1), RUDDER_NULL_ARGUMENT, "halo is NULL");
    WRONG((list[0] = -1, spec.halo = list, spec.halo_nodes = 1), RUDDER_ARGUMENT, "halo node -1 is negative");
    WRONG((list[0] = 3, spec.halo = list, spec.halo_nodes = 1), RUDDER_ARGUMENT, "halo node 3 is not a remote node");
    WRONG((list[0] = 3, list[1] = 3, spec.halo = list, spec.degree = degree, spec.halo_nodes = 2), RUDDER_ARGUMENT, "do not ascend");
    WRONG((spec.halo = list, spec.halo_nodes = UINT64_MAX), RUDDER_ARGUMENT, "beyond all memory");
    CHECK(table == (rudder_table *)UNTOUCHED);
    DONE(rudder_table_create(comm, &good, &table));
    WRONG(, RUDDER_ARGUMENT, "table 1 was created already");

    /* Nothing runs before the start. */
    int64_t node = 0;
    uint8_t row[WIDTH];
    rudder_rows *rows = NULL;
    rudder_ticket ticket = 0;
    rudder_comm_counts of_comm = {.struct_size = sizeof of_comm};
    rudder_table_counts of_table = {.struct_size = sizeof of_table};
    rudder_step_times times = {.struct_size = sizeof times};
    REFUSED(rudder_gather(table, &node, 1, 0, row, WIDTH), RUDDER_NOT_STARTED, "call rudder_comm_start");
    REFUSED(rudder_rows_create(table, 1, &rows), RUDDER_NOT_STARTED, "call rudder_comm_start");
    REFUSED(rudder_announce(comm, 0, &table, 1, &node, 1, &ticket), RUDDER_NOT_STARTED, "call rudder_comm_start");
    REFUSED(rudder_comm_shutdown(comm), RUDDER_NOT_STARTED, "call rudder_comm_start");
    REFUSED(rudder_comm_mark_step(comm, &times), RUDDER_NOT_STARTED, "call rudder_comm_start");
    REFUSED(rudder_comm_mark_epoch_end(comm), RUDDER_NOT_STARTED, "call rudder_comm_start");
    REFUSED(rudder_comm_stats(comm, &of_comm), RUDDER_NOT_STARTED, "not started");
    REFUSED(rudder_table_stats(table, &of_table), RUDDER_NOT_STARTED, "not started");
    DONE(rudder_comm_start(comm));
    WRONG(spec.id = 2, RUDDER_ALREADY_STARTED, "tables are created before");
    destroy(comm);

    /* Rows without a file cannot be shared by shm. */
    DONE(create_with("{\"transport\": \"shm\"}", &comm));
    DONE(rudder_table_create(comm, &good, &table));
    REFUSED(rudder_comm_start(comm), RUDDER_TRANSPORT, "the `path` of a table");
    DONE(rudder_comm_destroy(comm));

    /* A partition without nodes needs neither rows nor a file. */
    comm = create();
    list[0] = list[1] = 0;
    spec = (rudder_table_spec){.struct_size = sizeof spec, .partitions = 1, .starts = list, .row_bytes = 4};
    DONE(rudder_table_create(comm, &spec, &table));
    DONE(rudder_comm_start(comm));
    REFUSED(rudder_gather(table, &node, 1, 0, row, 4), RUDDER_NODE_OUT_OF_RANGE, "node 0 is not in table 0");
    destroy(comm);
}

static void gathers(void)
{
    rudder_table *table = NULL;
    rudder_comm *comm = create_started(&table);
    int64_t nodes[3] = {1, 2, 3}, wrong[3] = {1, 2, 3};
    uint8_t rows[3 * WIDTH];
    rudder_ticket ticket = 77;
    const int64_t outside[] = {-1, -NODES, INT64_MIN, INT64_MAX, NODES};
    for (size_t at = 0; at < sizeof outside / sizeof *outside; at++) {
        const char *words = outside[at] < 0 ? "is negative; table 4 has nodes 0..600" : "is not in table 4, which has nodes 0..600";
        wrong[1] = outside[at];
        REFUSED(rudder_gather(table, wrong, 3, 0, rows, sizeof rows), RUDDER_NODE_OUT_OF_RANGE, words);
        REFUSED(rudder_announce(comm, 0, &table, 1, wrong, 3, &ticket), RUDDER_NODE_OUT_OF_RANGE, words);
    }
    REFUSED(rudder_gather(table, nodes, 3, 0, rows, sizeof rows - 1), RUDDER_ARGUMENT, "3 nodes of 12 bytes each do not fit 35 bytes");
    REFUSED(rudder_gather(table, nodes, 2, 0, rows, sizeof rows), RUDDER_ARGUMENT, "do not fit 36 bytes");
    REFUSED(rudder_gather(table, nodes, 3, 0, rows, 0), RUDDER_ARGUMENT, "do not fit 0 bytes");
    REFUSED(rudder_gather(table, nodes, 3, 0, rows, UINT64_MAX), RUDDER_ARGUMENT, "beyond all memory");
    REFUSED(rudder_gather(table, nodes, UINT64_MAX, 0, rows, sizeof rows), RUDDER_ARGUMENT, "beyond all memory");
    REFUSED(rudder_gather(table, nodes, UINT64_C(1) << 61, 0, rows, 0), RUDDER_ARGUMENT, "beyond all memory");
    REFUSED(rudder_gather(table, (const int64_t *)((const char *)nodes + 1), 2, 0, rows, 2 * WIDTH), RUDDER_ARGUMENT, "not aligned to 8");
    REFUSED(rudder_gather(table, nodes, 3, 1, rows, sizeof rows), RUDDER_TICKET, "gathered or forgotten");
    REFUSED(rudder_gather(table, nodes, 3, UINT64_MAX, rows, sizeof rows), RUDDER_TICKET, "ticket");
    REFUSED(rudder_gather(table, nodes, 3, UINT64_C(1) << 32, rows, sizeof rows), RUDDER_TICKET, "given out by no announcement");
    REFUSED(rudder_announce(comm, 0, &table, 0, nodes, 3, &ticket), RUDDER_ARGUMENT, "0 tables; give 1 to 64");
    REFUSED(rudder_announce(comm, 0, (rudder_table *[]){table, table}, 2, nodes, 3, &ticket), RUDDER_ARGUMENT, "announced twice");
    CHECK(ticket == 77);
    rudder_ticket first, second;
    DONE(rudder_announce(comm, 0, &table, 1, nodes, 3, &first));
    DONE(rudder_announce(comm, 0, &table, 1, nodes, 3, &second));
    REFUSED(rudder_announce(comm, 0, &table, 1, nodes, 3, &ticket), RUDDER_FULL, "the window is full (2)");
    DONE(rudder_forget_stream(comm, 0));
    DONE(rudder_gather(table, nodes, 3, 0, rows, sizeof rows));
    compare(4, nodes, 3, WIDTH, rows);
    destroy(comm);
}

static void rows_and_requests(void)
{
    rudder_table *table = NULL, *other_table = NULL;
    rudder_comm *comm = create_started(&table), *other = create_started(&other_table);
    int64_t nodes[3] = {5, 4, 3};
    uint8_t memory[100];
    rudder_rows *rows[2], *more = (rudder_rows *)UNTOUCHED, *of_other = NULL;
    rudder_registration *registration = NULL;
    rudder_request *request = (rudder_request *)UNTOUCHED, *requests[2];
    void *data = NULL;
    uint64_t bytes = 0;

    REFUSED(rudder_rows_create(table, 51, &more), RUDDER_ARGUMENT, "51 rows of a pool whose buffers hold 50");
    REFUSED(rudder_rows_create(table, UINT64_MAX, &more), RUDDER_ARGUMENT, "beyond all memory");
    DONE(rudder_rows_create(table, 3, &rows[0]));
    DONE(rudder_rows_create(table, 2, &rows[1]));
    REFUSED(rudder_rows_create(table, 1, &more), RUDDER_FULL, "the pool of row buffers is full (2)");
    DONE(rudder_rows_create(other_table, 3, &of_other));
    REFUSED(rudder_registration_create(comm, memory, 0, &registration), RUDDER_ARGUMENT, "0 bytes");
    REFUSED(rudder_registration_create(comm, memory, UINT64_MAX, &registration), RUDDER_ARGUMENT, "beyond all memory");
    DONE(rudder_registration_create(comm, memory, sizeof memory, &registration));
    REFUSED(rudder_registration_rows(registration, 90, 1, WIDTH, &more), RUDDER_ARGUMENT, "pass the end of the 100 bytes");
    REFUSED(rudder_registration_rows(registration, UINT64_MAX, 1, WIDTH, &more), RUDDER_ARGUMENT, "beyond all memory");
    REFUSED(rudder_registration_rows(registration, 0, UINT64_MAX, WIDTH, &more), RUDDER_ARGUMENT, "beyond all memory");
    REFUSED(rudder_registration_rows(registration, 0, 1, 0, &more), RUDDER_ARGUMENT, "rows of 0 bytes");
    CHECK(more == (rudder_rows *)UNTOUCHED);
    DONE(rudder_registration_rows(registration, 0, 3, WIDTH + 1, &more));
    rudder_rows *overlapping = NULL;
    REFUSED(rudder_registration_rows(registration, 38, 3, WIDTH, &overlapping), RUDDER_ARGUMENT, "whose rows are still held");
    REFUSED(rudder_registration_destroy(registration), RUDDER_ARGUMENT, "1 handles of rows");

    REFUSED(rudder_request_start(table, nodes, 3, 0, rows[1], &request), RUDDER_ARGUMENT, "3 nodes of 12 bytes each asked for into 2 rows");
    REFUSED(rudder_request_start(table, nodes, 3, 0, more, &request), RUDDER_ARGUMENT, "into 3 rows of 13 bytes");
    REFUSED(rudder_request_start(table, nodes, 3, 0, of_other, &request), RUDDER_ARGUMENT, "of another comm");
    REFUSED(rudder_request_start(table, nodes, 3, 9, rows[0], &request), RUDDER_TICKET, "gathered or forgotten");
    nodes[0] = -2;
    REFUSED(rudder_request_start(table, nodes, 3, 0, rows[0], &request), RUDDER_NODE_OUT_OF_RANGE, "node -2 is negative");
    nodes[0] = 5;
    CHECK(request == (rudder_request *)UNTOUCHED);
    rudder_ticket ticket = 77;
    REFUSED(rudder_announce(comm, 0, &other_table, 1, nodes, 3, &ticket), RUDDER_ARGUMENT, "of another comm");

    /* The rows are there after all these refusals. */
    DONE(rudder_request_start(table, nodes, 3, 0, rows[0], &requests[0]));
    REFUSED(rudder_request_start(table, nodes, 3, 0, rows[0], &request), RUDDER_ARGUMENT, "an open request fills these rows");
    REFUSED(rudder_rows_data(rows[0], &data, &bytes), RUDDER_ARGUMENT, "an open request fills these rows");
    DONE(rudder_request_start(table, nodes, 2, 0, rows[1], &requests[1]));
    DONE(rudder_rows_destroy(more));
    DONE(rudder_registration_rows(registration, 1, 3, WIDTH, &more));
    REFUSED(rudder_request_start(table, nodes, 3, 0, more, &request), RUDDER_FULL, "the table of open requests is full (2)");
    DONE(rudder_request_wait(requests[0]));
    DONE(rudder_rows_data(rows[0], &data, &bytes));
    compare(4, nodes, 3, WIDTH, data);

    /* Handles that are gone, and of the wrong kind. */
    DONE(rudder_request_destroy(requests[0]));
    REFUSED(rudder_request_destroy(requests[0]), RUDDER_HANDLE, "this request was destroyed");
    REFUSED(rudder_request_test(requests[0]), RUDDER_HANDLE, "this request was destroyed");
    REFUSED(rudder_request_wait(requests[0]), RUDDER_HANDLE, "this request was destroyed");
    REFUSED(rudder_request_wait((rudder_request *)(void *)rows[0]), RUDDER_HANDLE, "of a rows, not of a request");
    REFUSED(rudder_rows_destroy((rudder_rows *)(void *)table), RUDDER_HANDLE, "of a table, not of a rows");
    REFUSED(rudder_comm_start((rudder_comm *)(void *)table), RUDDER_HANDLE, "of a table, not of a comm");
    REFUSED(rudder_gather((rudder_table *)(void *)comm, nodes, 1, 0, memory, WIDTH), RUDDER_HANDLE, "of a comm, not of a table");
    REFUSED(rudder_registration_destroy((rudder_registration *)(void *)memory), RUDDER_HANDLE, "is no handle of a registration");
    REFUSED(rudder_comm_destroy((rudder_comm *)(void *)&comm), RUDDER_HANDLE, "is no handle of a comm");
    DONE(rudder_rows_destroy(rows[0]));
    REFUSED(rudder_rows_destroy(rows[0]), RUDDER_HANDLE, "this rows was destroyed");
    REFUSED(rudder_rows_data(rows[0], &data, &bytes), RUDDER_HANDLE, "this rows was destroyed");
    REFUSED(rudder_request_start(table, nodes, 3, 0, rows[0], &request), RUDDER_HANDLE, "this rows was destroyed");
    DONE(rudder_rows_destroy(more));
    DONE(rudder_registration_destroy(registration));
    REFUSED(rudder_registration_destroy(registration), RUDDER_HANDLE, "this registration was destroyed");
    REFUSED(rudder_registration_rows(registration, 0, 1, 1, &more), RUDDER_HANDLE, "this registration was destroyed");
    DONE(rudder_table_destroy(table));
    REFUSED(rudder_table_destroy(table), RUDDER_HANDLE, "this table was destroyed");
    REFUSED(rudder_gather(table, nodes, 1, 0, memory, WIDTH), RUDDER_HANDLE, "this table was destroyed");
    DONE(rudder_comm_destroy(comm));
    REFUSED(rudder_comm_destroy(comm), RUDDER_HANDLE, "this comm was destroyed");
    REFUSED(rudder_comm_shutdown(comm), RUDDER_HANDLE, "this comm was destroyed");
    REFUSED(rudder_request_wait(requests[1]), RUDDER_HANDLE, "with its comm");
    REFUSED(rudder_rows_destroy(rows[1]), RUDDER_HANDLE, "with its comm");
    destroy(other);
}

static rudder_comm *forked_comm;
static rudder_table *forked_table;

/* The number of the first call that a forked child may make, or 0. */
static int try_in_child(void)
{
    rudder_comm *comm = forked_comm;
    rudder_table *table = forked_table;
    rudder_unique_id id;
    rudder_table_spec spec = table_spec(9);
    rudder_ticket ticket = 0;
    rudder_rows *rows = NULL;
    rudder_registration *registration = NULL;
    rudder_request *request = NULL;
    rudder_status error = 0;
    int64_t node = 0;
    uint8_t row[WIDTH];
    uint64_t bytes = 0;
    void *data = NULL;
    rudder_comm_counts of_comm = {.struct_size = sizeof of_comm};
    rudder_table_counts of_table = {.struct_size = sizeof of_table};
    rudder_step_times times = {.struct_size = sizeof times};
    const rudder_status found[] = {
        rudder_unique_id_create(NULL, &id), rudder_comm_create(&id, 1, 0, NULL, &comm), rudder_comm_start(comm),
        rudder_comm_abort(comm), rudder_comm_async_error(comm, &error), rudder_comm_shutdown(comm), rudder_comm_pause(comm, 1),
        rudder_comm_wait_idle(comm, 1), rudder_comm_stats(comm, &of_comm), rudder_comm_mark_step(comm, &times),
        rudder_comm_mark_epoch_end(comm), rudder_table_create(comm, &spec, &table),
        rudder_table_stats(table, &of_table), rudder_announce(comm, 0, &table, 1, &node, 1, &ticket), rudder_forget(comm, 1),
        rudder_forget_stream(comm, 1), rudder_gather(table, &node, 1, 0, row, WIDTH), rudder_rows_create(table, 1, &rows),
        rudder_rows_data(rows, &data, &bytes), rudder_rows_destroy(rows),
        rudder_registration_create(comm, row, WIDTH, &registration), rudder_registration_rows(registration, 0, 1, WIDTH, &rows),
        rudder_registration_destroy(registration), rudder_request_start(table, &node, 1, 0, rows, &request),
        rudder_request_test(request), rudder_request_wait(request), rudder_request_destroy(request), rudder_table_destroy(table),
        rudder_comm_destroy(comm),
    };
    for (size_t at = 0; at < sizeof found / sizeof *found; at++)
        if (found[at] != RUDDER_FORKED || strstr(rudder_last_error(), "forked child") == NULL)
            return (int)at + 1;
    return 0;
}

static void forks(void)
{
    forked_comm = create_started(&forked_table);
    int told[2], let = -1;
    CHECK(pipe(told) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        alarm(PATIENCE);
        let = try_in_child();
        /* Not by exit: to valgrind all that the parent's threads hold is lost in the child. */
        CHECK(write(told[1], &let, sizeof let) == sizeof let && kill(getpid(), SIGKILL) == 0);
    }
    CHECK(close(told[1]) == 0 && read(told[0], &let, sizeof let) == sizeof let && close(told[0]) == 0);
    CHECK(waitpid(child, NULL, 0) == child);
    if (let != 0)
        fprintf(stderr, "the child was let make call number %d\n", let);
    CHECK(let == 0);
    int64_t node = 17;
    uint8_t row[WIDTH];
    DONE(rudder_gather(forked_table, &node, 1, 0, row, WIDTH));
    compare(4, &node, 1, WIDTH, row);
    destroy(forked_comm);
}

/* Two ranks as threads, behind a link so slow that requests are open when they are looked at. */
typedef struct side {
    rudder_unique_id id;
    uint32_t rank;
    const char *settings;
    rudder_comm *comm;
    rudder_table *table;
    uint8_t rows[NODES / 2 * WIDTH];
} side;

static void *join(void *argument)
{
    side *side = (struct side *)argument;
    const int64_t halves[3] = {0, NODES / 2, NODES};
    rudder_config config = {.struct_size = sizeof config, .settings = side->settings};
    DONE(rudder_comm_create(&side->id, 2, side->rank, &config, &side->comm));
    fill(4, halves[side->rank], halves[side->rank + 1], WIDTH, side->rows);
    rudder_table_spec spec = {.struct_size = sizeof spec, .id = 4, .partition = side->rank, .partitions = 2, .starts = halves,
                              .row_bytes = WIDTH, .rows = side->rows, .bytes = sizeof side->rows};
    DONE(rudder_table_create(side->comm, &spec, &side->table));
    DONE(rudder_comm_start(side->comm));
    return NULL;
}

static void join_both(side *sides, const char *settings)
{
    pthread_t other;
    DONE(rudder_unique_id_create(NULL, &sides[0].id));
    sides[1].id = sides[0].id;
    sides[0].settings = sides[1].settings = settings;
    sides[1].rank = 1;
    CHECK(pthread_create(&other, NULL, join, &sides[1]) == 0);
    join(&sides[0]);
    CHECK(pthread_join(other, NULL) == 0);
}

static atomic_int waiting;

static void *wait_for(void *request)
{
    atomic_store(&waiting, 1);
    rudder_status status = rudder_request_wait((rudder_request *)request);
    return (void *)(intptr_t)status;
}

static void *gather_until_the_end(void *table)
{
    int64_t node = NODES - 1;
    uint8_t row[WIDTH];
    rudder_status status = RUDDER_DONE;
    while (status == RUDDER_DONE)
        status = rudder_gather((rudder_table *)table, &node, 1, 0, row, WIDTH);
    return (void *)(intptr_t)status;
}

static void open_requests(void)
{
    side *sides = (side *)calloc(2, sizeof *sides);
    CHECK(sides != NULL);
    join_both(sides, "{\"buffer\": 0, \"link\": \"1s\", \"map_host_rows\": false, \"rows_max\": 4, \"rows_buffers\": 8}");
    rudder_table *table = sides[0].table;
    int64_t node = NODES - 1;
    rudder_rows *rows = NULL;
    rudder_request *request = NULL;
    pthread_t other;
    void *ended = NULL;
    DONE(rudder_rows_create(table, 1, &rows));
    DONE(rudder_request_start(table, &node, 1, 0, rows, &request));
    CHECK(rudder_request_test(request) == RUDDER_IN_PROGRESS);
    CHECK(pthread_create(&other, NULL, wait_for, request) == 0);
    while (atomic_load(&waiting) == 0)
        pause_ms(1);
    pause_ms(50);
    CHECK(rudder_request_test(request) == RUDDER_IN_PROGRESS);
    REFUSED(rudder_request_wait(request), RUDDER_ARGUMENT, "another thread waits for this request");
    REFUSED(rudder_request_destroy(request), RUDDER_ARGUMENT, "another thread waits for this request");
    REFUSED(rudder_comm_wait_idle(sides[0].comm, 1), RUDDER_TRANSPORT, "still on their way");
    CHECK(pthread_join(other, &ended) == 0 && ended == (void *)(intptr_t)RUDDER_DONE);
    DONE(rudder_request_wait(request));
    DONE(rudder_request_destroy(request));

    /* A comm that is destroyed while one thread waits for a request and another gathers. */
    pthread_t gatherer;
    void *gathered = NULL;
    DONE(rudder_request_start(table, &node, 1, 0, rows, &request));
    atomic_store(&waiting, 0);
    CHECK(pthread_create(&other, NULL, wait_for, request) == 0 && pthread_create(&gatherer, NULL, gather_until_the_end, table) == 0);
    while (atomic_load(&waiting) == 0)
        pause_ms(1);
    pause_ms(50);
    DONE(rudder_comm_destroy(sides[0].comm));
    CHECK(pthread_join(other, &ended) == 0 && pthread_join(gatherer, &gathered) == 0);
    CHECK(ended == (void *)(intptr_t)RUDDER_HANDLE || ended == (void *)(intptr_t)RUDDER_CLOSED);
    CHECK(gathered == (void *)(intptr_t)RUDDER_HANDLE || gathered == (void *)(intptr_t)RUDDER_CLOSED);
    DONE(rudder_comm_destroy(sides[1].comm));
    free(sides);
}

static void deadlines(void)
{
    side *sides = (side *)calloc(2, sizeof *sides);
    CHECK(sides != NULL);
    join_both(sides, "{\"buffer\": 0, \"link\": \"1s\", \"map_host_rows\": false, \"gather_timeout\": 0.2, \"collective_timeout\": 1}");
    int64_t node = NODES - 1;
    uint8_t row[WIDTH];
    rudder_rows *rows = NULL;
    rudder_request *request = NULL;
    void *data = NULL;
    uint64_t bytes = 0;
    REFUSED(rudder_gather(sides[0].table, &node, 1, 0, row, WIDTH), RUDDER_DEADLINE, " from rank 1 (");
    DONE(rudder_rows_create(sides[0].table, 1, &rows));
    DONE(rudder_request_start(sides[0].table, &node, 1, 0, rows, &request));
    REFUSED(rudder_request_wait(request), RUDDER_DEADLINE, "not complete after 200ms");
    REFUSED(rudder_request_test(request), RUDDER_DEADLINE, "not complete after 200ms");
    /* The rows are the program's again. */
    DONE(rudder_rows_data(rows, &data, &bytes));
    node = 0;
    DONE(rudder_gather(sides[0].table, &node, 1, 0, row, WIDTH));
    compare(4, &node, 1, WIDTH, row);
    /* Alone, it does not wait for ever. */
    REFUSED(rudder_comm_shutdown(sides[0].comm), RUDDER_BOOTSTRAP, "rank 1");
    DONE(rudder_comm_destroy(sides[0].comm));
    DONE(rudder_comm_destroy(sides[1].comm));
    free(sides);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    folder = argv[1];
    statuses_and_versions();
    nulls();
    structs_of_other_versions();
    ids_and_settings();
    tables();
    gathers();
    rows_and_requests();
    forks();
    open_requests();
    deadlines();
    return 0;
}
