/*
 * Goal: a job of processes in C11 can do all that the header offers, and every row is right to the byte.
 * Method: each rank gathers from a table in its own memory and one in a file, in every way that there is; then a second job is aborted.
 *
 *   everything RANK RANKS FOLDER TRANSPORT     (the transport `shm` has both tables in files)
 */
#include "job.h"

#include <pthread.h>

enum { COUNT = 200, WIDTH_0 = 100, WIDTH_1 = 24, RANKS_MAX = 8 };

static const uint64_t WIDTH[2] = {WIDTH_0, WIDTH_1};

typedef struct job {
    uint32_t rank, ranks;
    const char *folder;
    const char *transport;
    rudder_comm *comm;
    rudder_table *tables[2];
    uint8_t *rows[2];
} job;

static void add_table(job *job, uint32_t table, int by_path)
{
    int64_t starts[RANKS_MAX + 1], halo[NODES];
    uint32_t degree[NODES];
    char path[512];
    starts_of(starts, job->ranks);
    int64_t first = starts[job->rank], end = starts[job->rank + 1];
    uint64_t bytes = (uint64_t)(end - first) * WIDTH[table];
    job->rows[table] = (uint8_t *)malloc(bytes);
    CHECK(job->rows[table] != NULL);
    fill(table, first, end, WIDTH[table], job->rows[table]);
    rudder_table_spec spec = {.struct_size = sizeof spec, .id = table, .partition = job->rank, .partitions = job->ranks,
                              .starts = starts, .row_bytes = WIDTH[table], .halo = halo, .degree = degree};
    spec.halo_nodes = halo_of(halo, degree, starts, job->rank);
    if (by_path) {
        CHECK(snprintf(path, sizeof path, "%s/rows-%u-%u", job->folder, job->rank, table) < (int)sizeof path);
        FILE *file = fopen(path, "wb");
        CHECK(file != NULL && fwrite(job->rows[table], 1, bytes, file) == bytes && fclose(file) == 0);
        spec.path = path;
    } else {
        spec.rows = job->rows[table];
        spec.bytes = bytes;
    }
    DONE(rudder_table_create(job->comm, &spec, &job->tables[table]));
}

static void create(job *job, const char *id_file, const char *settings)
{
    char path[512];
    CHECK(snprintf(path, sizeof path, "%s/%s", job->folder, id_file) < (int)sizeof path);
    rudder_unique_id id = spread_id(path, job->rank);
    rudder_config config = {.struct_size = sizeof config, .settings = settings};
    DONE(rudder_comm_create(&id, job->ranks, job->rank, &config, &job->comm));
    add_table(job, 0, strcmp(job->transport, "shm") == 0);
    add_table(job, 1, 1);
    DONE(rudder_comm_start(job->comm));
    REFUSED(rudder_comm_start(job->comm), RUDDER_ALREADY_STARTED, "is started");
    rudder_status error = 1;
    DONE(rudder_comm_async_error(job->comm, &error));
    CHECK(error == RUDDER_DONE);
    DONE(rudder_comm_wait_idle(job->comm, PATIENCE * 1000));
}

static void destroy(job *job)
{
    DONE(rudder_table_destroy(job->tables[1]));
    DONE(rudder_comm_destroy(job->comm));
    /* What was made of it went with it, and nothing reads the rows any more: valgrind would tell. */
    REFUSED(rudder_table_destroy(job->tables[0]), RUDDER_HANDLE, "destroyed");
    REFUSED(rudder_comm_destroy(job->comm), RUDDER_HANDLE, "destroyed");
    free(job->rows[0]);
    free(job->rows[1]);
}

static void gather(job *job, uint32_t table, uint64_t turn, rudder_ticket ticket)
{
    int64_t nodes[COUNT];
    uint8_t rows[COUNT * WIDTH_0];
    minibatch(nodes, COUNT, turn);
    DONE(rudder_gather(job->tables[table], nodes, COUNT, ticket, rows, COUNT * WIDTH[table]));
    compare(table, nodes, COUNT, WIDTH[table], rows);
}

static rudder_ticket announce(job *job, uint32_t stream, uint32_t tables, uint64_t turn)
{
    int64_t nodes[COUNT];
    rudder_ticket ticket = 0;
    minibatch(nodes, COUNT, turn);
    DONE(rudder_announce(job->comm, stream, job->tables, tables, nodes, COUNT, &ticket));
    CHECK(ticket != 0);
    return ticket;
}

static void try_announcements(job *job)
{
    rudder_ticket both = announce(job, 0, 2, 1), next = announce(job, 0, 1, 2);
    gather(job, 0, 1, both);
    gather(job, 1, 1, both);
    gather(job, 0, 2, next);

    int64_t nodes[COUNT];
    uint8_t rows[COUNT * WIDTH_0];
    minibatch(nodes, COUNT, 2);
    REFUSED(rudder_gather(job->tables[0], nodes, COUNT, next, rows, COUNT * WIDTH_0), RUDDER_TICKET, "gathered or forgotten");
    rudder_ticket forgotten = announce(job, 3, 1, 2);
    DONE(rudder_forget(job->comm, forgotten));
    DONE(rudder_forget(job->comm, forgotten));
    DONE(rudder_forget(job->comm, 0));
    REFUSED(rudder_gather(job->tables[0], nodes, COUNT, forgotten, rows, COUNT * WIDTH_0), RUDDER_TICKET, "gathered or forgotten");
    rudder_ticket of_stream = announce(job, 7, 1, 2), of_other = announce(job, 8, 1, 3);
    REFUSED(rudder_gather(job->tables[0], nodes, COUNT, of_other, rows, COUNT * WIDTH_0), RUDDER_TICKET, "not those that were announced");
    DONE(rudder_forget_stream(job->comm, 7));
    REFUSED(rudder_gather(job->tables[0], nodes, COUNT, of_stream, rows, COUNT * WIDTH_0), RUDDER_TICKET, "gathered or forgotten");
    gather(job, 0, 3, of_other);
}

static void await(rudder_request *request)
{
    rudder_status status = RUDDER_IN_PROGRESS;
    for (int tries = 0; status == RUDDER_IN_PROGRESS && tries < PATIENCE * 1000; tries++) {
        status = rudder_request_test(request);
        pause_ms(1);
    }
    DONE(status);
    DONE(rudder_request_test(request));
    DONE(rudder_request_wait(request));
}

static void try_requests(job *job)
{
    int64_t nodes[COUNT];
    rudder_rows *rows = NULL;
    rudder_request *request = NULL;
    void *data = NULL;
    uint64_t bytes = 0;
    DONE(rudder_rows_create(job->tables[0], COUNT, &rows));
    for (uint64_t turn = 0; turn < 3; turn++) {
        minibatch(nodes, COUNT, turn);
        DONE(rudder_request_start(job->tables[0], nodes, COUNT, 0, rows, &request));
        if (turn == 0) {
            await(request);
        } else {
            DONE(rudder_request_wait(request));
            DONE(rudder_request_wait(request));
        }
        DONE(rudder_rows_data(rows, &data, &bytes));
        CHECK(bytes == COUNT * WIDTH_0);
        compare(0, nodes, COUNT, WIDTH_0, data);
        DONE(rudder_request_destroy(request));
    }
    /* One that nobody waits for is aborted, and gives the rows back. */
    DONE(rudder_request_start(job->tables[0], nodes, COUNT, 0, rows, &request));
    REFUSED(rudder_rows_destroy(rows), RUDDER_ARGUMENT, "an open request fills these rows");
    DONE(rudder_request_destroy(request));
    DONE(rudder_rows_data(rows, &data, &bytes));
    DONE(rudder_rows_destroy(rows));
}

static void try_registration(job *job)
{
    int64_t nodes[2][COUNT];
    rudder_registration *registration = NULL;
    rudder_rows *rows[2] = {NULL, NULL};
    rudder_request *requests[2] = {NULL, NULL};
    uint8_t *own = (uint8_t *)malloc(2 * COUNT * WIDTH_1);
    CHECK(own != NULL);
    DONE(rudder_registration_create(job->comm, own, 2 * COUNT * WIDTH_1, &registration));
    for (uint32_t half = 0; half < 2; half++) {
        minibatch(nodes[half], COUNT, 20 + half);
        DONE(rudder_registration_rows(registration, half * COUNT * WIDTH_1, COUNT, WIDTH_1, &rows[half]));
        DONE(rudder_request_start(job->tables[1], nodes[half], COUNT, 0, rows[half], &requests[half]));
    }
    REFUSED(rudder_registration_destroy(registration), RUDDER_ARGUMENT, "2 handles of rows");
    for (uint32_t half = 2; half-- > 0;) {
        void *data = NULL;
        uint64_t bytes = 0;
        DONE(rudder_request_wait(requests[half]));
        DONE(rudder_rows_data(rows[half], &data, &bytes));
        CHECK(data == own + half * COUNT * WIDTH_1 && bytes == COUNT * WIDTH_1);
        compare(1, nodes[half], COUNT, WIDTH_1, data);
        DONE(rudder_request_destroy(requests[half]));
        DONE(rudder_rows_destroy(rows[half]));
    }
    /* A gather finds the registration by the address. */
    DONE(rudder_gather(job->tables[1], nodes[0], COUNT, 0, own + 5, COUNT * WIDTH_1));
    compare(1, nodes[0], COUNT, WIDTH_1, own + 5);
    DONE(rudder_registration_destroy(registration));
    free(own);
}

static rudder_table_counts counts(job *job, uint32_t table)
{
    rudder_table_counts counts = {.struct_size = sizeof counts};
    DONE(rudder_table_stats(job->tables[table], &counts));
    CHECK(counts.row_bytes == WIDTH[table]);
    return counts;
}

static void try_pause(job *job)
{
    uint64_t before = counts(job, 0).minibatches;
    DONE(rudder_comm_pause(job->comm, 1));
    gather(job, 0, 30, 0);
    CHECK(counts(job, 0).minibatches == before);
    DONE(rudder_comm_pause(job->comm, 0));
    gather(job, 0, 30, 0);
    CHECK(counts(job, 0).minibatches == before + 1);
}

/* How a step was spent, and where an epoch ends. */
static void try_marks(job *job)
{
    rudder_step_times times = {.struct_size = sizeof times, .sample_ns = 1000, .compute_ns = 5000, .allreduce_ns = 200};
    for (uint64_t turn = 0; turn < 4; turn++) {
        gather(job, 0, turn, 0);
        DONE(rudder_comm_mark_step(job->comm, &times));
    }
    DONE(rudder_comm_mark_epoch_end(job->comm));
}

static void *gather_often(void *argument)
{
    for (uint64_t turn = 0; turn < 20; turn++)
        gather((job *)argument, turn % 2, turn * 13, 0);
    return NULL;
}

static void try_threads(job *job)
{
    pthread_t threads[4];
    for (int at = 0; at < 4; at++)
        CHECK(pthread_create(&threads[at], NULL, gather_often, job) == 0);
    for (int at = 0; at < 4; at++)
        CHECK(pthread_join(threads[at], NULL) == 0);
}

static void try_stats(job *job)
{
    rudder_comm_counts comm = {.struct_size = sizeof comm};
    DONE(rudder_comm_stats(job->comm, &comm));
    CHECK(strcmp(comm.controller, "periodic") == 0 && comm.decisions > 0);
    CHECK(strcmp(job->transport, "auto") == 0 ? strcmp(comm.transport, "tcp") == 0 : strcmp(comm.transport, job->transport) == 0);
    rudder_table_counts table = counts(job, 0);
    CHECK(table.minibatches > 20 && table.remote_nodes > 0 && table.demand_rows > 0 && table.local_rows > 0);
    CHECK(table.failovers == 0);
    CHECK(table.buffer_slots > 0 && table.buffer_bytes >= table.buffer_slots * WIDTH_0 && table.fill_rows > 0 && table.hits > 0);
}

/* Where nothing runs any more, only what reads counts does. */
static void try_after_the_end(job *job, const char *why)
{
    int64_t node = 0;
    uint8_t row[WIDTH_0];
    rudder_ticket ticket = 0;
    rudder_rows *rows = NULL;
    rudder_registration *registration = NULL;
    rudder_status error = RUDDER_DONE;
    REFUSED(rudder_gather(job->tables[0], &node, 1, 0, row, WIDTH_0), RUDDER_CLOSED, why);
    REFUSED(rudder_announce(job->comm, 0, job->tables, 1, &node, 1, &ticket), RUDDER_CLOSED, why);
    REFUSED(rudder_rows_create(job->tables[0], 1, &rows), RUDDER_CLOSED, why);
    REFUSED(rudder_registration_create(job->comm, row, sizeof row, &registration), RUDDER_CLOSED, why);
    REFUSED(rudder_comm_pause(job->comm, 1), RUDDER_CLOSED, why);
    REFUSED(rudder_comm_mark_epoch_end(job->comm), RUDDER_CLOSED, why);
    REFUSED(rudder_forget(job->comm, 1), RUDDER_CLOSED, why);
    REFUSED(rudder_comm_shutdown(job->comm), RUDDER_CLOSED, why);
    REFUSED(rudder_comm_start(job->comm), RUDDER_CLOSED, why);
    DONE(rudder_comm_async_error(job->comm, &error));
    CHECK(error == RUDDER_CLOSED && strstr(rudder_last_error(), why) != NULL);
    CHECK(counts(job, 0).minibatches > 0 && rows == NULL && registration == NULL && ticket == 0);
}

/* Rank 0 aborts with a request open; the others find its rows gone once it has destroyed its comm. */
static void try_abort(job *job)
{
    if (job->rank != 0) {
        int64_t node = 0;
        uint8_t row[WIDTH_0];
        rudder_status status = RUDDER_DONE;
        /* A row that is wanted again and again would be found in the buffer, whoever is gone. */
        DONE(rudder_comm_pause(job->comm, 1));
        for (int tries = 0; status == RUDDER_DONE && tries < PATIENCE * 100; tries++) {
            status = rudder_gather(job->tables[0], &node, 1, 0, row, WIDTH_0);
            pause_ms(10);
        }
        REFUSED(status, RUDDER_GET, "from rank 0");
        return;
    }
    int64_t nodes[COUNT];
    rudder_rows *rows = NULL;
    rudder_request *request = NULL;
    void *data = NULL;
    uint64_t bytes = 0;
    gather(job, 0, 0, 0);
    minibatch(nodes, COUNT, 50);
    DONE(rudder_rows_create(job->tables[0], COUNT, &rows));
    DONE(rudder_request_start(job->tables[0], nodes, COUNT, 0, rows, &request));
    DONE(rudder_comm_abort(job->comm));
    DONE(rudder_comm_abort(job->comm));
    try_after_the_end(job, "aborted");
    /* Its rows may all have come before the abort. */
    rudder_status ended = rudder_request_wait(request);
    CHECK(ended == RUDDER_DONE || (ended == RUDDER_CLOSED && strstr(rudder_last_error(), "aborted") != NULL));
    CHECK(rudder_request_test(request) == ended);
    DONE(rudder_rows_data(rows, &data, &bytes));
    /* The request and the rows go with the comm. */
}

int main(int argc, char **argv)
{
    CHECK(argc == 5);
    CHECK(RUDDER_ABI_MATCHES() && strlen(rudder_version()) >= 5 && strcmp(rudder_last_error(), "") == 0);
    job job = {.rank = (uint32_t)atoi(argv[1]), .ranks = (uint32_t)atoi(argv[2]), .folder = argv[3], .transport = argv[4]};
    char settings[1024], trace[512];
    CHECK(job.ranks <= RANKS_MAX);
    CHECK(snprintf(trace, sizeof trace, "%s/of-c", job.folder) < (int)sizeof trace);
    CHECK(snprintf(settings, sizeof settings,
                   "{\"transport\": \"%s\", \"buffer\": \"50%%\", \"policy\": \"rudder\", \"controller\": \"periodic:2\","
                   " \"map_host_rows\": false, \"rows_max\": %d, \"gather_timeout\": %d, \"collective_timeout\": %d, \"backoff\": 0.01,"
                   " \"trace\": \"%s\"}",
                   job.transport, COUNT, PATIENCE, PATIENCE, trace) < (int)sizeof settings);
    create(&job, "id", settings);
    gather(&job, 0, 0, 0);
    gather(&job, 1, 0, 0);
    DONE(rudder_gather(job.tables[0], NULL, 0, 0, NULL, 0));
    try_announcements(&job);
    try_requests(&job);
    try_registration(&job);
    try_pause(&job);
    try_threads(&job);
    try_marks(&job);
    try_stats(&job);
    DONE(rudder_comm_shutdown(job.comm));
    CHECK(has_trace(trace, job.rank));
    try_after_the_end(&job, "shut down");
    destroy(&job);

    create(&job, "id-to-abort", settings);
    try_abort(&job);
    destroy(&job);
    return 0;
}
