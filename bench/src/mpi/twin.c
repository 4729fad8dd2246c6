/*
 * The raw gets of raw.rs once more, as a C program would write them: what a call costs from Rust can be held against it.
 * Compiled by the MPI's own compiler, of the same window and the same rows. All functions answer with MPI's code.
 */
#include <mpi.h>
#include <stddef.h>
#include <stdint.h>

int rudder_twin_plain(MPI_Win window, int owner, const uint64_t *rows, int count, int row_bytes, char *landing)
{
    for (int i = 0; i < count; ++i) {
        int code = MPI_Get(landing + (size_t)i * row_bytes, row_bytes, MPI_BYTE, owner, (MPI_Aint)rows[i] * row_bytes, row_bytes,
                           MPI_BYTE, window);
        if (code != MPI_SUCCESS)
            return code;
    }
    return MPI_SUCCESS;
}

/* `offsets` has room for `count` numbers. */
int rudder_twin_hindexed(MPI_Win window, int owner, const uint64_t *rows, int count, int row_bytes, char *landing, MPI_Aint *offsets)
{
    MPI_Datatype list;
    int code, freed;

    for (int i = 0; i < count; ++i)
        offsets[i] = (MPI_Aint)rows[i] * row_bytes;
    code = MPI_Type_create_hindexed_block(count, row_bytes, offsets, MPI_BYTE, &list);
    if (code != MPI_SUCCESS)
        return code;
    code = MPI_Type_commit(&list);
    if (code == MPI_SUCCESS)
        code = MPI_Get(landing, count * row_bytes, MPI_BYTE, owner, 0, 1, list, window);
    freed = MPI_Type_free(&list);
    return code != MPI_SUCCESS ? code : freed;
}

int rudder_twin_flush(MPI_Win window, int owner)
{
    return MPI_Win_flush(owner, window);
}
