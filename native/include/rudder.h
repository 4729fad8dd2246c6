/*
 * Rudder: feature rows for distributed GNN training.
 *
 * A job is a number of ranks, each a process (or a thread) with a comm. Rank 0's process creates a unique id, the program spreads it, and every
 * rank calls rudder_comm_create, rudder_table_create for each of its tables, and rudder_comm_start. Then any thread gathers rows. At the end all
 * call rudder_comm_shutdown and rudder_comm_destroy.
 *
 * Node ids are int64_t, global within a table, and never negative. Rows are bytes of a fixed width: their type is the program's affair.
 *
 * Every function that can fail answers a rudder_status, writes its results only where it succeeds, and tells why by rudder_last_error() where it
 * does not. Besides the errors that a function names, any may answer RUDDER_NULL_ARGUMENT, RUDDER_HANDLE, RUDDER_FORKED and
 * RUDDER_PANIC. All functions may be called by any thread at any time. Handles are opaque values, not addresses; one that was destroyed is
 * recognised. The library must not be unloaded (dlclose). RUDDER_DEBUG=info tells each choice made, and why, on standard error.
 */

#ifndef RUDDER_H
#define RUDDER_H

#include <stdint.h>

/* Whether the library that runs speaks this header's version of the interface: check it first. */
#define RUDDER_ABI_MATCHES() (rudder_abi_version() == RUDDER_ABI_VERSION)

/**
 * Done.
 */
#define RUDDER_DONE 0

/**
 * Not an error: the request is still on its way.
 */
#define RUDDER_IN_PROGRESS 1

/**
 * A pointer is NULL that may not be. From here to -99 the call is at fault: nothing has happened.
 */
#define RUDDER_NULL_ARGUMENT -1

/**
 * An argument is wrong, or at odds with another; the last error says which.
 */
#define RUDDER_ARGUMENT -2

/**
 * A node id is negative or beyond the table.
 */
#define RUDDER_NODE_OUT_OF_RANGE -3

/**
 * A setting is unknown, out of its bounds, or contradicts another.
 */
#define RUDDER_CONFIG -4

/**
 * A ticket was gathered or forgotten already, or is of other nodes or tables.
 */
#define RUDDER_TICKET -5

/**
 * Something bounded is full: try again when what is open has ended.
 */
#define RUDDER_FULL -6

/**
 * A `struct_size` is none that this library knows: header and library are of different versions.
 */
#define RUDDER_ABI -7

/**
 * A handle was destroyed, by itself or with its comm, is of another kind, or never was one.
 */
#define RUDDER_HANDLE -8

/**
 * The comm was not started yet.
 */
#define RUDDER_NOT_STARTED -9

/**
 * The comm was started already.
 */
#define RUDDER_ALREADY_STARTED -10

/**
 * This process is a forked child of one that has, or has had, a comm; it owns no device, file or peer: make comms after the fork.
 */
#define RUDDER_FORKED -11

/**
 * Time is over. From here to -199 this request has failed; others go on.
 */
#define RUDDER_DEADLINE -100

/**
 * A peer did not give its rows. From here to -299 what concerns this peer has failed; rows of others can be had.
 */
#define RUDDER_GET -200

/**
 * The ranks did not come together. From here to -399 the comm, or what was to be made for it, has failed.
 */
#define RUDDER_BOOTSTRAP -300

/**
 * A transport cannot be opened, or cannot do what is asked of it.
 */
#define RUDDER_TRANSPORT -301

/**
 * Memory cannot be had, mapped or registered.
 */
#define RUDDER_MEMORY -302

/**
 * The comm was shut down or aborted, or has ended by an error.
 */
#define RUDDER_CLOSED -303

/**
 * The file of a table cannot be used.
 */
#define RUDDER_TABLE_FILE -304

/**
 * A model's file cannot be used.
 */
#define RUDDER_MODEL -305

/**
 * The starts of a table's partitions do not hold together.
 */
#define RUDDER_PARTITION_BOOK -306

/**
 * A bug of this library: it has panicked, and what it was doing is undone as far as it could be. Please report it.
 */
#define RUDDER_PANIC -400

/**
 * The version of this interface. It grows where a program that was built with an older header could not run any more; what is only
 * added, at the end of structs too, leaves it.
 */
#define RUDDER_ABI_VERSION 1

/**
 * Bytes of a unique id.
 */
#define RUDDER_UNIQUE_ID_BYTES 64

/**
 * Most tables of one announcement.
 */
#define RUDDER_ANNOUNCE_TABLES_MAX 64

/**
 * Bytes of a name in counts, its zero included.
 */
#define RUDDER_NAME_BYTES 32

/**
 * One rank's part in a job: its tables, and what reads those of the other ranks. Any number of threads may use it at once.
 */
typedef struct rudder_comm rudder_comm;

/**
 * Memory of the program's own, registered once so that many gathers can land in it without a copy.
 */
typedef struct rudder_registration rudder_registration;

/**
 * A gather that was started.
 */
typedef struct rudder_request rudder_request;

/**
 * Memory for the rows of one request, registered so that every transport can write to it: out of the comm's pool, or a part of a
 * registration.
 */
typedef struct rudder_rows rudder_rows;

/**
 * One feature table of a job: rows of a fixed width, one for each node of one type, partitioned over the ranks.
 */
typedef struct rudder_table rudder_table;

/**
 * What a call answers: 0 done, above 0 not an error, below 0 an error. Errors come in bands, by what they leave unharmed; a number is
 * never given another meaning.
 */
typedef int32_t rudder_status;

/**
 * Names one job: where rank 0 listens, and the secret by which ranks prove that they belong. Rank 0's process creates it and the program
 * spreads the bytes by whatever it has (a store, MPI, a file); whoever holds them can join, so keep them out of logs.
 */
typedef struct rudder_unique_id {
    /**
     * Opaque.
     */
    uint8_t bytes[RUDDER_UNIQUE_ID_BYTES];
} rudder_unique_id;

/**
 * Settings of a comm. Where a function takes a pointer to it, NULL means defaults.
 */
typedef struct rudder_config {
    /**
     * sizeof(rudder_config). A shorter one, of an older header, is accepted, and so is a longer one whose further bytes are zero.
     */
    uint64_t struct_size;
    /**
     * A JSON object, or NULL for defaults; an unknown key is an error. Such as
     *
     * ```json
     * {"buffer": "25%", "policy": "lfu", "controller": "off", "gather_timeout": 30}
     * ```
     *
     * docs/c.md lists all keys. RUDDER_* variables (RUDDER_BUFFER, RUDDER_TRANSPORT...) override them.
     */
    const char *settings;
} rudder_config;

/**
 * What a rank says of one table. All ranks say the same of `id`, `partitions`, `starts`, `row_bytes` and `version`.
 */
typedef struct rudder_table_spec {
    /**
     * sizeof(rudder_table_spec); see rudder_config.
     */
    uint64_t struct_size;
    /**
     * The table's name within the job.
     */
    uint32_t id;
    /**
     * The partition whose rows this rank gives; several ranks of a machine may give the same one.
     */
    uint32_t partition;
    /**
     * Number of partitions, at least 1.
     */
    uint32_t partitions;
    /**
     * partitions + 1 node ids that ascend from 0: partition p owns the nodes starts[p] to starts[p + 1] - 1. Copied.
     */
    const int64_t *starts;
    /**
     * Bytes of a row, whatever the type of its elements.
     */
    uint64_t row_bytes;
    /**
     * Version of the rows; 0 will do.
     */
    uint64_t version;
    /**
     * The rows of `partition`, one after the other in the order of their nodes, used in place and not copied. They stay the caller's, who
     * keeps them valid and unchanged until rudder_comm_destroy has returned. NULL where `path` is given, or the partition has no nodes.
     * Memory without a file cannot be shared with other processes: the transport `shm` refuses it, and `auto` takes `tcp` for it.
     */
    const void *rows;
    /**
     * Bytes at `rows`; at least those of the partition.
     */
    uint64_t bytes;
    /**
     * Instead of `rows`: a file that begins with them, mapped read-only, such as /dev/shm/NAME. It must not be shortened or rewritten
     * while any rank's comm lives: the system ends a process that reads beyond a mapped file's end.
     */
    const char *path;
    /**
     * `halo_nodes` remote nodes adjacent to the partition, ascending, or NULL. They set what a share of a buffer means. Copied.
     */
    const int64_t *halo;
    /**
     * For each halo node its degree, or NULL where unknown. Copied.
     */
    const uint32_t *degree;
    /**
     * Number of halo nodes.
     */
    uint64_t halo_nodes;
    /**
     * Edges of the graph, 0 where unknown; controllers are told.
     */
    uint64_t edges;
} rudder_table_spec;

/**
 * Names an announced minibatch until it is gathered from each of its tables or forgotten; 0 is none.
 */
typedef uint64_t rudder_ticket;

/**
 * How a training step was spent beside its wait for rows, in nanoseconds.
 */
typedef struct rudder_step_times {
    /**
     * sizeof(rudder_step_times); see rudder_config.
     */
    uint64_t struct_size;
    /**
     * Sampling and announcing.
     */
    uint64_t sample_ns;
    /**
     * Forward, backward and update; all of the step, where its parts are not known.
     */
    uint64_t compute_ns;
    /**
     * Averaging gradients, the wait for slower ranks included.
     */
    uint64_t allreduce_ns;
} rudder_step_times;

/**
 * Counts of a comm since it was started.
 */
typedef struct rudder_comm_counts {
    /**
     * sizeof(rudder_comm_counts), set by the caller; fewer or more bytes than this library knows are filled as far as both know them.
     */
    uint64_t struct_size;
    /**
     * Decisions of the controller that took effect, those of its fallback included.
     */
    uint64_t decisions;
    /**
     * Of these, decisions to replace.
     */
    uint64_t replace_decisions;
    /**
     * Of these, decisions that the fallback made.
     */
    uint64_t fallback_decisions;
    /**
     * Times that the fallback took over, as a model did not load, failed or was late.
     */
    uint64_t fallbacks;
    /**
     * Observations that a full queue pushed out.
     */
    uint64_t dropped_observations;
    /**
     * Observations that no decision was based on.
     */
    uint64_t skipped_observations;
    /**
     * Median time of a decision, in nanoseconds.
     */
    uint64_t decision_ns_p50;
    /**
     * 99th percentile of it.
     */
    uint64_t decision_ns_p99;
    /**
     * The longest.
     */
    uint64_t decision_ns_max;
    /**
     * Time that a model took to load, in nanoseconds.
     */
    uint64_t model_load_ns;
    /**
     * Processor time of a model, in nanoseconds.
     */
    uint64_t model_cpu_ns;
    /**
     * The transport that moves rows, such as "tcp".
     */
    char transport[RUDDER_NAME_BYTES];
    /**
     * The controller, such as "off".
     */
    char controller[RUDDER_NAME_BYTES];
} rudder_comm_counts;

/**
 * Counts of a table since the comm was started, on this rank. Minibatches while paused are not in those of the buffer.
 */
typedef struct rudder_table_counts {
    /**
     * sizeof(rudder_table_counts); see rudder_comm_counts.
     */
    uint64_t struct_size;
    /**
     * Bytes of a row.
     */
    uint64_t row_bytes;
    /**
     * Gathers that the buffer and the controller have learnt from.
     */
    uint64_t minibatches;
    /**
     * Remote nodes that they wanted.
     */
    uint64_t remote_nodes;
    /**
     * Of these, nodes whose row was in the buffer or on its way there.
     */
    uint64_t hits;
    /**
     * Rows fetched because a gather wanted them.
     */
    uint64_t demand_rows;
    /**
     * Rows fetched ahead, the buffer's first fill not included.
     */
    uint64_t prefetched_rows;
    /**
     * Rows fetched for the first fill.
     */
    uint64_t fill_rows;
    /**
     * Rows that were tried again.
     */
    uint64_t retried_rows;
    /**
     * Rows copied from this rank or from mapped memory of its machine.
     */
    uint64_t local_rows;
    /**
     * Slots of the buffer; one holds one row.
     */
    uint64_t buffer_slots;
    /**
     * Bytes of the slots and of all that is kept about them.
     */
    uint64_t buffer_bytes;
    /**
     * Rows kept that a gather fetched anyway.
     */
    uint64_t buffer_admissions;
    /**
     * Slots given to other nodes by decided replacements.
     */
    uint64_t buffer_replacements;
    /**
     * Rows that lost their slots to others.
     */
    uint64_t buffer_evictions;
    /**
     * Of these, rows fetched before anyone asked that never served.
     */
    uint64_t buffer_useless;
    /**
     * Partitions that are asked of another rank, as the one before is gone.
     */
    uint64_t failovers;
} rudder_table_counts;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Why the last failing call of this thread failed: never NULL, empty before the first; valid until the thread's next failing call or its end.
 * Calls that succeed leave it alone.
 */
const char *rudder_last_error(void);

/**
 * The name of a status, such as "RUDDER_CLOSED"; never NULL, "unknown" for a number that is none.
 */
const char *rudder_status_name(rudder_status status);

/**
 * The version of the interface that the library has: compare it with the header's `RUDDER_ABI_VERSION` (`RUDDER_ABI_MATCHES()`) before
 * any other call.
 */
uint32_t rudder_abi_version(void);

/**
 * The version of the library, such as "0.1.0"; never NULL, valid for ever.
 */
const char *rudder_version(void);

/**
 * Creates a unique id and listens for the ranks of its job. Rank 0 must join in this process. At most 64 may wait to be joined.
 *
 * `listen` is the address that the other ranks reach this process at: "ip", which takes a free port, or "ip:port" ("[ip]:port" for IPv6);
 * NULL is the loopback interface, for jobs on one machine.
 *
 * Errors: RUDDER_ARGUMENT (no address, or none that can be listened on), RUDDER_FULL.
 */
rudder_status rudder_unique_id_create(const char *listen,
                                      struct rudder_unique_id *id);

/**
 * Joins the job of `id` as one of `ranks` ranks, and returns once all have. Collective: every rank calls it, rank 0 in the process that
 * created the id. `config` may be NULL. Waits for at most the setting `collective_timeout`, 60 s by default.
 *
 * The comm is the caller's, to be destroyed by rudder_comm_destroy. Next come its tables, then rudder_comm_start.
 *
 * Errors: RUDDER_NULL_ARGUMENT, RUDDER_ARGUMENT (a rank not below `ranks`, bytes that are no unique id), RUDDER_ABI, RUDDER_CONFIG,
 * RUDDER_BOOTSTRAP (names the ranks that did not come, or why this one was refused), RUDDER_FULL.
 */
rudder_status rudder_comm_create(const struct rudder_unique_id *id,
                                 uint32_t ranks,
                                 uint32_t rank,
                                 const struct rudder_config *config,
                                 struct rudder_comm **comm);

/**
 * Opens the transport, exchanges the tables made so far and begins to serve. Collective: all ranks call it, with tables of the same ids,
 * row bytes, versions and starts, made in the same order. Waits for at most the setting `collective_timeout` at each of its steps.
 *
 * After an error the comm can only be destroyed. With a language model in this process (controllers llm-replace, llm-cohorts) it may set
 * CANDLE_NUM_THREADS: no other thread may call getenv or setenv meanwhile.
 *
 * Errors: RUDDER_ALREADY_STARTED, RUDDER_CONFIG, RUDDER_BOOTSTRAP, RUDDER_TRANSPORT, RUDDER_MEMORY, RUDDER_TABLE_FILE, RUDDER_MODEL,
 * RUDDER_CLOSED (aborted meanwhile, or an earlier start has failed).
 */
rudder_status rudder_comm_start(struct rudder_comm *comm);

/**
 * Ends this rank's part at once, without the others: all open requests and calls of other threads end with RUDDER_CLOSED, and so does
 * every later call but those that read counts, read what has ended, and destroy. A start under way ends by its own deadline.
 * Other ranks can read this rank's rows until the comm is destroyed. Aborting again does nothing.
 */
rudder_status rudder_comm_abort(struct rudder_comm *comm);

/**
 * Says whether the comm is well: `*error` becomes RUDDER_DONE while it is, RUDDER_TRANSPORT once it has ended by an error that no
 * request could be told of, RUDDER_CLOSED where it was aborted, shut down or did not start; for these rudder_last_error() tells why, though this
 * call itself is done. What fails for one request or one peer is that request's status only.
 */
rudder_status rudder_comm_async_error(const struct rudder_comm *comm,
                                      rudder_status *error);

/**
 * Ends the job together: no rank reads any more when it returns, so that all may destroy their comms. Collective, within the setting
 * `collective_timeout`; open requests end with RUDDER_CLOSED, as does every later call (see rudder_comm_abort).
 *
 * Errors: RUDDER_NOT_STARTED, RUDDER_CLOSED, RUDDER_BOOTSTRAP (names the ranks that did not come; this rank has ended all the same).
 */
rudder_status rudder_comm_shutdown(struct rudder_comm *comm);

/**
 * While paused (`paused` is not 0), gathers are served, but the buffer and the controller learn nothing from them: for evaluation and
 * inference. Applies to requests that start after it.
 */
rudder_status rudder_comm_pause(struct rudder_comm *comm,
                                int32_t paused);

/**
 * Waits until no row is on its way: the buffers' first fill is in place, rows fetched ahead have landed.
 *
 * Errors: RUDDER_TRANSPORT where it is not so within `timeout_ms` milliseconds; RUDDER_NOT_STARTED, RUDDER_CLOSED.
 */
rudder_status rudder_comm_wait_idle(struct rudder_comm *comm, uint32_t timeout_ms);

/**
 * Ends the comm as rudder_comm_abort does and frees it with all that was made of it: its tables, rows, registrations and requests, whose
 * handles answer RUDDER_HANDLE from then on. When it returns, nothing of the library uses the program's memory any more. Other ranks
 * that still read get errors: call rudder_comm_shutdown before where the job ends well. NULL is fine.
 *
 * Errors: RUDDER_HANDLE (destroyed already); RUDDER_DEADLINE, where a call of another thread is still inside after 30 s: the comm is
 * gone, but the program's rows must stay valid until the process ends. In a forked child it touches nothing.
 */
rudder_status rudder_comm_destroy(struct rudder_comm *comm);

/**
 * Adds a table to a comm, before rudder_comm_start. Local; ranks add the same tables in the same order.
 *
 * The table is freed by rudder_table_destroy or with its comm.
 *
 * Errors: RUDDER_NULL_ARGUMENT, RUDDER_ARGUMENT (a number out of its bounds, rows that are too few, a halo that does not ascend...),
 * RUDDER_PARTITION_BOOK (starts that do not hold together), RUDDER_TABLE_FILE (with `path`), RUDDER_ABI, RUDDER_ALREADY_STARTED,
 * RUDDER_FULL.
 */
rudder_status rudder_table_create(struct rudder_comm *comm,
                                  const struct rudder_table_spec *spec,
                                  struct rudder_table **table);

/**
 * Gives the handle back. The rows stay registered, and other ranks may read them, until the comm is destroyed. NULL is fine.
 */
rudder_status rudder_table_destroy(struct rudder_table *table);

/**
 * Says that the rows of `count` nodes will be gathered from each of `tables_count` tables, so that they can be fetched ahead. Tickets of
 * one `stream`, a number of the caller's such as one for each data loader, are gathered in the order in which they were announced.
 * At most the settings `tickets` (64) and `announced_nodes` may be open. The nodes are copied.
 *
 * Errors: RUDDER_NULL_ARGUMENT, RUDDER_ARGUMENT (no table, one named twice or of another comm), RUDDER_NODE_OUT_OF_RANGE, RUDDER_FULL
 * (gathering without a ticket is always right, only slower), RUDDER_NOT_STARTED, RUDDER_CLOSED.
 */
rudder_status rudder_announce(struct rudder_comm *comm,
                              uint32_t stream,
                              struct rudder_table *const *tables,
                              uint32_t tables_count,
                              const int64_t *nodes,
                              uint64_t count,
                              rudder_ticket *ticket);

/**
 * Takes an announcement back; one that was gathered or forgotten already is ignored, as is 0.
 */
rudder_status rudder_forget(struct rudder_comm *comm, rudder_ticket ticket);

/**
 * Takes back all that a stream has announced and not gathered: a loop that breaks off need not know its tickets.
 */
rudder_status rudder_forget_stream(struct rudder_comm *comm, uint32_t stream);

/**
 * Reads the rows of `count` nodes, in their order, into `rows`, and returns when they are there: count * row_bytes bytes, which
 * `rows_bytes` must say. `ticket` is that of the announcement of these very nodes, or 0. Nodes may repeat.
 *
 * The memory is the caller's and need not be registered (see rudder_registration_create, which saves a copy on some transports).
 * After an error its bytes are undefined, and nothing will write to it any more. Several threads may gather at once.
 *
 * Errors: RUDDER_NULL_ARGUMENT, RUDDER_ARGUMENT (another number of bytes), RUDDER_NODE_OUT_OF_RANGE, RUDDER_TICKET, RUDDER_FULL (the
 * setting `requests`), RUDDER_GET (names rank, range and cause), RUDDER_DEADLINE (the setting `gather_timeout`), RUDDER_NOT_STARTED,
 * RUDDER_CLOSED.
 */
rudder_status rudder_gather(struct rudder_table *table,
                            const int64_t *nodes,
                            uint64_t count,
                            rudder_ticket ticket,
                            void *rows,
                            uint64_t rows_bytes);

/**
 * Takes memory for `count` rows of a table out of the comm's pool, which is allocated and registered at the first call: buffers by the
 * setting `rows_buffers` (4) of at most `rows_max` (65,536) rows each. Freed by rudder_rows_destroy, which gives it back to the pool,
 * or with its comm.
 *
 * Errors: RUDDER_FULL (all are out), RUDDER_ARGUMENT (more than `rows_max`), RUDDER_MEMORY, RUDDER_NOT_STARTED, RUDDER_CLOSED.
 */
rudder_status rudder_rows_create(struct rudder_table *table,
                                 uint64_t count,
                                 struct rudder_rows **rows);

/**
 * Where the rows are, and their bytes: count * row_bytes, row after row in the order of the nodes once a request has filled them. Valid, at
 * the same address, until rudder_rows_destroy.
 *
 * Errors: RUDDER_ARGUMENT while an open request fills them; RUDDER_HANDLE, also where they were given up with a failed request.
 */
rudder_status rudder_rows_data(const struct rudder_rows *rows,
                               void **data,
                               uint64_t *bytes);

/**
 * Gives the memory back. NULL is fine.
 *
 * Errors: RUDDER_ARGUMENT while an open request fills them.
 */
rudder_status rudder_rows_destroy(struct rudder_rows *rows);

/**
 * Registers `bytes` bytes at `base`, which stay the caller's: rows for requests are taken from them by rudder_registration_rows, and a
 * rudder_gather into any part of them goes there directly too. Until rudder_registration_destroy or rudder_comm_destroy has returned they
 * must stay valid. Register once and use it many times: registering pins pages, which costs more than a gather.
 *
 * Errors: RUDDER_NULL_ARGUMENT, RUDDER_ARGUMENT, RUDDER_MEMORY (a limit on pinned bytes), RUDDER_TRANSPORT, RUDDER_NOT_STARTED,
 * RUDDER_CLOSED.
 */
rudder_status rudder_registration_create(struct rudder_comm *comm,
                                         void *base,
                                         uint64_t bytes,
                                         struct rudder_registration **registration);

/**
 * Takes `count` rows of `row_bytes` bytes each, from byte `first_byte` of the registration on, for a request. No two handles of rows may
 * share bytes. Freed by rudder_rows_destroy.
 *
 * Errors: RUDDER_ARGUMENT (beyond the end, or bytes of other rows that are held), RUDDER_FULL, RUDDER_CLOSED.
 */
rudder_status rudder_registration_rows(struct rudder_registration *registration,
                                       uint64_t first_byte,
                                       uint64_t count,
                                       uint64_t row_bytes,
                                       struct rudder_rows **rows);

/**
 * Ends the registration: when it returns, the library does not use the memory any more. NULL is fine.
 *
 * Errors: RUDDER_ARGUMENT while rows of it are held, and nothing has happened; RUDDER_DEADLINE, where a gather of another thread is
 * still under way after 30 s: the memory must stay valid until the process ends.
 */
rudder_status rudder_registration_destroy(struct rudder_registration *registration);

/**
 * Starts to read the rows of `count` nodes, in their order, into `rows`, which holds exactly `count` rows of the table's width, and
 * returns at once. The request has the rows until it is over: rudder_request_test or rudder_request_wait says so, and then their handle
 * can be read, and used for another request. The nodes are copied; `ticket` is as in rudder_gather. Freed by rudder_request_destroy or with
 * the comm.
 *
 * Errors: as rudder_gather, and RUDDER_ARGUMENT where the rows are of another shape or comm, or another request fills them. The rows
 * are left as they were then.
 */
rudder_status rudder_request_start(struct rudder_table *table,
                                   const int64_t *nodes,
                                   uint64_t count,
                                   rudder_ticket ticket,
                                   struct rudder_rows *rows,
                                   struct rudder_request **request);

/**
 * Answers RUDDER_IN_PROGRESS while rows are on their way, RUDDER_DONE when all are there, or why the request has failed; it never waits.
 */
rudder_status rudder_request_test(const struct rudder_request *request);

/**
 * Waits for the rows, for at most the setting `gather_timeout` and the time that an abort takes. Afterwards the handle of the rows can be
 * read, after an error too: their bytes are undefined then. Asked again, it answers the same.
 *
 * Errors: RUDDER_GET, RUDDER_DEADLINE, RUDDER_CLOSED; RUDDER_ARGUMENT while another thread waits for it.
 */
rudder_status rudder_request_wait(struct rudder_request *request);

/**
 * Frees a request; one that is open is aborted, and its rows can be read again, though their bytes are undefined. NULL is fine.
 *
 * Errors: RUDDER_ARGUMENT while another thread waits for it.
 */
rudder_status rudder_request_destroy(struct rudder_request *request);

/**
 * Tells the trace, where the setting `trace` has one recorded, how the step of the minibatch that was waited for last was spent. Once a
 * minibatch, before the next one is waited for; without it, what lies between a wait and the next counts as computing, but for what came
 * before a gather that was started ahead, which counts as sampling. Does nothing where no trace is recorded.
 *
 * Errors: RUDDER_ABI, RUDDER_NOT_STARTED, RUDDER_CLOSED.
 */
rudder_status rudder_comm_mark_step(struct rudder_comm *comm,
                                    const struct rudder_step_times *times);

/**
 * Tells the trace, where the setting `trace` has one recorded, that an epoch ends with the minibatch that was waited for last: gathers
 * that were started after it are of the next. Does nothing where no trace is recorded.
 *
 * Errors: RUDDER_NOT_STARTED, RUDDER_CLOSED.
 */
rudder_status rudder_comm_mark_epoch_end(struct rudder_comm *comm);

/**
 * Reads the counts of a comm; also of one that has ended. Errors: RUDDER_ABI, RUDDER_NOT_STARTED.
 */
rudder_status rudder_comm_stats(const struct rudder_comm *comm, struct rudder_comm_counts *stats);

/**
 * Reads the counts of a table; also where its comm has ended. Errors: RUDDER_ABI, RUDDER_NOT_STARTED.
 */
rudder_status rudder_table_stats(const struct rudder_table *table, struct rudder_table_counts *stats);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* RUDDER_H */
