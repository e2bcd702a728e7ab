// What the compiler's checks for undefined behaviour (-fsanitize) call when one fails. Their own run time would print
// and go on; here a failed check ends the launch. Names and structures are the compilers', GCC's and Clang's alike.
#include "emulator.h"

namespace {

using emulator::fail;

struct Location {
    const char* file;
    uint32_t line;
    uint32_t column;

    emulator::Site site() const { return {file, static_cast<int>(line)}; }
};

struct Type {
    uint16_t kind;
    uint16_t info;
    char name[1]; // and more
};

struct Mismatch {
    Location location;
    const Type* type;
    unsigned char log_alignment;
    unsigned char access;
};

struct OutOfBounds {
    Location location;
    const Type* array;
    const Type* index;
};

struct Operands {
    Location location;
    const Type* left;
    const Type* right;
};

} // namespace

extern "C" {

void __ubsan_handle_type_mismatch_v1(Mismatch* data, void* address) {
    const unsigned long at = reinterpret_cast<unsigned long>(address);
    const unsigned long alignment = 1ul << data->log_alignment;
    if (address == nullptr) fail(data->location.site(), "access to %s through a null pointer", data->type->name);
    if (at % alignment != 0) {
        fail(data->location.site(), "access to %s at an address that is not a multiple of %lu but %lu off",
             data->type->name, alignment, at % alignment);
    }
    fail(data->location.site(), "access to %s where none can be", data->type->name);
}

void __ubsan_handle_out_of_bounds(OutOfBounds* data, void* index) {
    fail(data->location.site(), "index %ld of %s", reinterpret_cast<long>(index), data->array->name);
}

void __ubsan_handle_shift_out_of_bounds(Operands* data, void*, void*) {
    fail(data->location.site(), "a shift of %s by as many bits as it has, or more", data->left->name);
}

void __ubsan_handle_divrem_overflow(Operands* data, void*, void*) {
    fail(data->location.site(), "a division of %s by zero, or out of its range", data->left->name);
}
}
