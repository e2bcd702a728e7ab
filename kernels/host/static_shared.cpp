#include "static_shared.h"

#include <cstdint>
#include <cstdlib>
#include <link.h>

namespace emulator {

namespace {

// Where the piece lies as seen from a variable in it; the same for every thread.
thread_local unsigned char anchor;

struct Piece {
    ptrdiff_t offset = 0;
    size_t size = 0;
};

bool holds(const dl_phdr_info& library, uintptr_t address) {
    for (int i = 0; i < library.dlpi_phnum; i++) {
        const auto& part = library.dlpi_phdr[i];
        const uintptr_t start = library.dlpi_addr + part.p_vaddr;
        if (part.p_type == PT_LOAD && address >= start && address - start < part.p_memsz) return true;
    }
    return false;
}

int find_piece(dl_phdr_info* library, size_t, void* found) {
    if (!holds(*library, reinterpret_cast<uintptr_t>(&find_piece))) return 0;
    for (int i = 0; i < library->dlpi_phnum; i++) {
        const auto& part = library->dlpi_phdr[i];
        if (part.p_type != PT_TLS) continue;
        const auto start = static_cast<unsigned char*>(library->dlpi_tls_data);
        *static_cast<Piece*>(found) = {start - &anchor, part.p_memsz};
    }
    return 1;
}

Piece locate() {
    // The loader makes the piece when a thread first uses it.
    *const_cast<volatile unsigned char*>(&anchor) = 0;
    Piece piece;
    dl_iterate_phdr(find_piece, &piece);
    if (piece.size == 0) abort();
    return piece;
}

} // namespace

Bytes static_shared_memory() {
    static const Piece piece = locate();
    return {&anchor + piece.offset, piece.size};
}

} // namespace emulator
