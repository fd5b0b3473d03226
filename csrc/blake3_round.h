/*
 * BLAKE3's round, for words or vectors of words: what blake3.c and blake3_lanes.h have in common.
 * Floor 1. Private to them.
 */
#ifndef LR_BLAKE3_ROUND_H
#define LR_BLAKE3_ROUND_H

#include <stdint.h>

#define ROUNDS      7
#define BLOCK_BYTES 64u
#define CHUNK_BYTES 1024u
#define CHUNK_START 1u
#define CHUNK_END   2u
#define PARENT      4u
#define ROOT        8u

static const uint32_t initial[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
				    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

/* In which order each round takes the words of the message: each time the permutation again. */
static const uint8_t schedule[ROUNDS][16] = {
	{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
	{2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8},
	{3, 4, 10, 12, 13, 2, 7, 14, 6, 5, 9, 0, 11, 15, 8, 1},
	{10, 7, 12, 9, 14, 3, 13, 15, 4, 0, 11, 2, 5, 8, 1, 6},
	{12, 13, 9, 11, 15, 10, 14, 8, 7, 2, 5, 3, 0, 1, 6, 4},
	{9, 14, 11, 5, 8, 12, 15, 1, 13, 3, 0, 10, 2, 6, 4, 7},
	{11, 15, 5, 0, 1, 9, 8, 6, 14, 10, 2, 12, 3, 4, 7, 13},
};

#define ROTATE(x, n) (((x) >> (n)) | ((x) << (32 - (n))))

/* A quarter of the state is mixed with two words of the message. */
#define QUARTER(v, a, b, c, d, x, y)                                                               \
	do {                                                                                       \
		v[a] += v[b] + (x);                                                                \
		v[d] = ROTATE(v[d] ^ v[a], 16);                                                    \
		v[c] += v[d];                                                                      \
		v[b] = ROTATE(v[b] ^ v[c], 12);                                                    \
		v[a] += v[b] + (y);                                                                \
		v[d] = ROTATE(v[d] ^ v[a], 8);                                                     \
		v[c] += v[d];                                                                      \
		v[b] = ROTATE(v[b] ^ v[c], 7);                                                     \
	} while (0)

/* Columns, then diagonals. */
#define ROUND(v, m, order)                                                                         \
	do {                                                                                       \
		QUARTER(v, 0, 4, 8, 12, m[(order)[0]], m[(order)[1]]);                             \
		QUARTER(v, 1, 5, 9, 13, m[(order)[2]], m[(order)[3]]);                             \
		QUARTER(v, 2, 6, 10, 14, m[(order)[4]], m[(order)[5]]);                            \
		QUARTER(v, 3, 7, 11, 15, m[(order)[6]], m[(order)[7]]);                            \
		QUARTER(v, 0, 5, 10, 15, m[(order)[8]], m[(order)[9]]);                            \
		QUARTER(v, 1, 6, 11, 12, m[(order)[10]], m[(order)[11]]);                          \
		QUARTER(v, 2, 7, 8, 13, m[(order)[12]], m[(order)[13]]);                           \
		QUARTER(v, 3, 4, 9, 14, m[(order)[14]], m[(order)[15]]);                           \
	} while (0)

#endif
