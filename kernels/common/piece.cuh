// The size of an asynchronous copy.
#pragma once

constexpr unsigned PIECE = 16; // bytes
