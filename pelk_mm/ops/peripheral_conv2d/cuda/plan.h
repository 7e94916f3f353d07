// Run-time parameters; plan.py fills them in, field by field in this order.
#pragma once

// (N, C, H, W) with unit stride along W; strides count elements.
struct Tensor {
    void* data;
    i64 n, c, h;
    // Whether rows start at, and consist of, pairs of elements that may be read as one word.
    int paired;
};

constexpr int MAX_CELLS = 64;

struct Plan {
    int N, C, H, W;
    // k', and the taps on either side of the centre that reach the map.
    int cells, reach;
    // Box maps (maps.h): planes that are worked on together, segments of rows; bytes from the start to the first map,
    // from chunk to chunk, plane to plane, from the high to the low part, and from one group's maps to the next.
    int planes, segments, lead, chunk, plane, part, group;
    // Offsets in shared memory: the table of theta's blocks or the planes of dY, and scratch for reductions.
    int table, scratch;
    // Number of row cells that reach the map.
    int used;
    // Bytes from the first map to row y = 0 of each width's map.
    int map_row[8];
    // Of each used cell: bytes from the first map to its row for y = 0, theta's row, and the output rows that it
    // reaches.
    int cell_row[MAX_CELLS], theta_row[MAX_CELLS], first_y[MAX_CELLS], end_y[MAX_CELLS];
    // The cell of tap t - reach.
    unsigned char cell_of[128];
};
