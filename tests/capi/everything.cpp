// Goal: as everything.c, from C++17. Method: the same job through a thin layer of owners, which let go of things in C++'s order: last made,
// first destroyed.
//
//   everything RANK RANKS FOLDER TRANSPORT
#include "job.h"

#include <array>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

struct Error : std::runtime_error {
    rudder_status status;
    explicit Error(rudder_status status) : std::runtime_error(rudder_last_error()), status(status) {}
};

void done(rudder_status status)
{
    if (status < 0)
        throw Error(status);
}

template <typename T, rudder_status (*Destroy)(T *)> struct Destroyer {
    void operator()(T *handle) const { CHECK(Destroy(handle) == RUDDER_DONE); }
};

template <typename T, rudder_status (*Destroy)(T *)> using Owned = std::unique_ptr<T, Destroyer<T, Destroy>>;

using Comm = Owned<rudder_comm, rudder_comm_destroy>;
using Table = Owned<rudder_table, rudder_table_destroy>;
using Rows = Owned<rudder_rows, rudder_rows_destroy>;
using Registration = Owned<rudder_registration, rudder_registration_destroy>;
using Request = Owned<rudder_request, rudder_request_destroy>;

/// Makes what `call` writes a handle of.
template <typename O, typename F> O own(F call)
{
    typename O::pointer handle = nullptr;
    done(call(&handle));
    return O(handle);
}

constexpr uint64_t count = 150, row_bytes = 44;
constexpr uint32_t table_id = 9;

struct Part {
    std::vector<int64_t> starts, halo;
    std::vector<uint32_t> degree;
    std::vector<uint8_t> rows;
    std::string path;
};

Part part_of(uint32_t rank, uint32_t ranks, const std::string &folder)
{
    Part part;
    part.starts.resize(ranks + 1);
    part.halo.resize(NODES);
    part.degree.resize(NODES);
    starts_of(part.starts.data(), ranks);
    part.halo.resize(halo_of(part.halo.data(), part.degree.data(), part.starts.data(), rank));
    part.rows.resize(static_cast<size_t>(part.starts[rank + 1] - part.starts[rank]) * row_bytes);
    fill(table_id, part.starts[rank], part.starts[rank + 1], row_bytes, part.rows.data());
    part.path = folder + "/rows-of-c++-" + std::to_string(rank);
    std::ofstream file(part.path, std::ios::binary);
    file.write(reinterpret_cast<const char *>(part.rows.data()), static_cast<std::streamsize>(part.rows.size()));
    CHECK(file.flush().good());
    return part;
}

std::vector<int64_t> nodes_of(uint64_t turn)
{
    std::vector<int64_t> nodes(count);
    minibatch(nodes.data(), count, turn);
    return nodes;
}

void gather(rudder_table *table, uint64_t turn, rudder_ticket ticket = 0)
{
    std::vector<uint8_t> rows(count * row_bytes);
    auto nodes = nodes_of(turn);
    done(rudder_gather(table, nodes.data(), count, ticket, rows.data(), rows.size()));
    compare(table_id, nodes.data(), count, row_bytes, rows.data());
}

Request start(rudder_table *table, uint64_t turn, rudder_rows *rows)
{
    auto nodes = nodes_of(turn);
    return own<Request>([&](rudder_request **to) { return rudder_request_start(table, nodes.data(), count, 0, rows, to); });
}

void check(rudder_rows *rows, uint64_t turn)
{
    void *data = nullptr;
    uint64_t bytes = 0;
    done(rudder_rows_data(rows, &data, &bytes));
    CHECK(bytes == count * row_bytes);
    compare(table_id, nodes_of(turn).data(), count, row_bytes, data);
}

void train(rudder_comm *comm, rudder_table *table)
{
    std::array<rudder_ticket, 4> window{};
    auto announce = [&](uint64_t turn) {
        auto nodes = nodes_of(turn);
        done(rudder_announce(comm, 1, &table, 1, nodes.data(), count, &window[turn % 4]));
    };
    for (uint64_t turn = 0; turn < 3; turn++)
        announce(turn);
    for (uint64_t turn = 0; turn < 12; turn++) {
        announce(turn + 3);
        gather(table, turn, window[turn % 4]);
    }
    done(rudder_forget(comm, window[12 % 4]));
    done(rudder_forget_stream(comm, 1));

    auto pooled = own<Rows>([&](rudder_rows **to) { return rudder_rows_create(table, count, to); });
    {
        auto request = start(table, 20, pooled.get());
        done(rudder_request_wait(request.get()));
        check(pooled.get(), 20);
    }
    std::vector<uint8_t> memory(count * row_bytes);
    auto registration = own<Registration>(
        [&](rudder_registration **to) { return rudder_registration_create(comm, memory.data(), memory.size(), to); });
    auto registered = own<Rows>(
        [&](rudder_rows **to) { return rudder_registration_rows(registration.get(), 0, count, row_bytes, to); });
    auto first = start(table, 21, pooled.get()), second = start(table, 22, registered.get());
    rudder_status status = RUDDER_IN_PROGRESS;
    while (status == RUDDER_IN_PROGRESS)
        done(status = rudder_request_test(second.get()));
    check(registered.get(), 22);
    // The first is aborted by its owner's end, before the rows go.
}

void in_threads(rudder_table *table)
{
    std::vector<std::thread> threads;
    for (uint64_t at = 0; at < 3; at++)
        threads.emplace_back([=] {
            for (uint64_t turn = 0; turn < 10; turn++)
                gather(table, at * 10 + turn);
        });
    for (auto &thread : threads)
        thread.join();
}

Comm create(uint32_t rank, uint32_t ranks, const std::string &id_file, const std::string &settings)
{
    rudder_unique_id id = spread_id(id_file.c_str(), rank);
    rudder_config config{};
    config.struct_size = sizeof config;
    config.settings = settings.c_str();
    return own<Comm>([&](rudder_comm **to) { return rudder_comm_create(&id, ranks, rank, &config, to); });
}

Table add_table(rudder_comm *comm, const Part &part, uint32_t rank, bool by_path)
{
    rudder_table_spec spec{};
    spec.struct_size = sizeof spec;
    spec.id = table_id;
    spec.partition = rank;
    spec.partitions = static_cast<uint32_t>(part.starts.size() - 1);
    spec.starts = part.starts.data();
    spec.row_bytes = row_bytes;
    spec.halo = part.halo.data();
    spec.degree = part.degree.data();
    spec.halo_nodes = part.halo.size();
    if (by_path) {
        spec.path = part.path.c_str();
    } else {
        spec.rows = part.rows.data();
        spec.bytes = part.rows.size();
    }
    return own<Table>([&](rudder_table **to) { return rudder_table_create(comm, &spec, to); });
}

void check_counts(rudder_comm *comm, rudder_table *table)
{
    rudder_comm_counts of_comm{};
    of_comm.struct_size = sizeof of_comm;
    rudder_table_counts of_table{};
    of_table.struct_size = sizeof of_table;
    done(rudder_comm_stats(comm, &of_comm));
    done(rudder_table_stats(table, &of_table));
    CHECK(std::string(of_comm.controller) == "off" && of_table.minibatches > 40 && of_table.prefetched_rows > 0);
}

void run(uint32_t rank, uint32_t ranks, const std::string &folder, const std::string &transport)
{
    Part part = part_of(rank, ranks, folder);
    std::string trace = folder + "/of-c++";
    std::string settings = R"({"policy": {"name": "window"}, "controller": "off", "buffer": "1MiB", "map_host_rows": false,)"
                           R"( "collective_timeout": )" + std::to_string(PATIENCE) + R"(, "transport": ")" + transport +
                           R"(", "trace": ")" + trace + R"("})";
    Comm comm = create(rank, ranks, folder + "/id-of-c++", settings);
    Table table = add_table(comm.get(), part, rank, transport == "shm");
    done(rudder_comm_start(comm.get()));
    done(rudder_comm_wait_idle(comm.get(), PATIENCE * 1000));
    train(comm.get(), table.get());
    in_threads(table.get());
    done(rudder_comm_pause(comm.get(), 1));
    gather(table.get(), 1);
    done(rudder_comm_pause(comm.get(), 0));
    check_counts(comm.get(), table.get());
    rudder_step_times times{};
    times.struct_size = sizeof times;
    times.compute_ns = 5000;
    done(rudder_comm_mark_step(comm.get(), &times));
    done(rudder_comm_mark_epoch_end(comm.get()));
    rudder_status error = RUDDER_CLOSED;
    done(rudder_comm_async_error(comm.get(), &error));
    CHECK(error == RUDDER_DONE);
    done(rudder_comm_shutdown(comm.get()));
    CHECK(has_trace(trace.c_str(), rank));
    done(rudder_comm_abort(comm.get()));
    try {
        gather(table.get(), 1);
        CHECK(!"a comm that was shut down gathers");
    } catch (const Error &refused) {
        CHECK(refused.status == RUDDER_CLOSED && std::string(rudder_status_name(refused.status)) == "RUDDER_CLOSED");
    }
}

} // namespace

int main(int argc, char **argv)
{
    CHECK(argc == 5 && RUDDER_ABI_MATCHES() && rudder_version()[0] != '\0');
    try {
        run(static_cast<uint32_t>(std::stoul(argv[1])), static_cast<uint32_t>(std::stoul(argv[2])), argv[3], argv[4]);
    } catch (const Error &error) {
        std::fprintf(stderr, "rank %s: %s: %s\n", argv[1], rudder_status_name(error.status), error.what());
        return 1;
    }
}
