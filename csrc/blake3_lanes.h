/*
 * Hashing LANES inputs of one length side by side, an element of vectors each. Floor 1. Included by
 * blake3.c once for each width of vectors, with LANES, LOW, HIGH, TARGET and NAME(x) defined, which
 * are undefined here. The vectors are the compilers' own: the same lines are SSE2, AVX2, AVX-512
 * and NEON.
 */
typedef uint32_t NAME(words) __attribute__((vector_size(4 * LANES)));

/* Rows become columns: so many consecutive words of each input become vectors of one word of each.
 * A pass is a perfect shuffle of one half of the rows with the other. */
TARGET static inline void NAME(transpose)(NAME(words) rows[LANES])
{
	NAME(words) shuffled[LANES];

	for (unsigned reach = 1; reach < LANES; reach *= 2) {
		for (unsigned i = 0; i < LANES / 2; i++) {
			NAME(words) one = rows[i], other = rows[i + LANES / 2];

			shuffled[2 * i] = __builtin_shufflevector(one, other, LOW);
			shuffled[2 * i + 1] = __builtin_shufflevector(one, other, HIGH);
		}
		memcpy(rows, shuffled, sizeof(shuffled));
	}
}

/* `blocks` blocks of each input, from the initial value; `counter` is the first one's, the others'
 * are `step` more each. The first and the last block have flags of their own. */
TARGET static void NAME(hash)(const uint8_t *const inputs[LANES], unsigned blocks, uint64_t counter,
			      unsigned step, const uint32_t flags[3], uint8_t *ret_values)
{
	NAME(words) h[8], counter_low, counter_high, v[16], m[16];

	for (unsigned i = 0; i < 8; i++)
		h[i] = (NAME(words)){0} + initial[i];
	for (unsigned lane = 0; lane < LANES; lane++) {
		counter_low[lane] = (uint32_t)(counter + lane * step);
		counter_high[lane] = (uint32_t)((counter + lane * step) >> 32);
	}
	for (unsigned block = 0; block < blocks; block++) {
		uint32_t flag = flags[1] | (block == 0 ? flags[0] : 0)
				| (block == blocks - 1 ? flags[2] : 0);

		for (unsigned word = 0; word < 16; word += LANES) {
			for (unsigned lane = 0; lane < LANES; lane++)
				memcpy(&m[word + lane],
				       inputs[lane] + BLOCK_BYTES * block + 4 * word, sizeof(m[0]));
			NAME(transpose)(m + word);
		}
		for (unsigned i = 0; i < 8; i++)
			v[i] = h[i];
		for (unsigned i = 0; i < 4; i++)
			v[8 + i] = (NAME(words)){0} + initial[i];
		v[12] = counter_low;
		v[13] = counter_high;
		v[14] = (NAME(words)){0} + BLOCK_BYTES;
		v[15] = (NAME(words)){0} + flag;
		for (unsigned round = 0; round < ROUNDS; round++)
			ROUND(v, m, schedule[round]);
		for (unsigned i = 0; i < 8; i++)
			h[i] = v[i] ^ v[i + 8];
	}
	for (unsigned lane = 0; lane < LANES; lane++)
		for (unsigned i = 0; i < 8; i++)
			put_word(ret_values + 32 * lane + 4 * i, h[i][lane]);
}

#undef LANES
#undef LOW
#undef HIGH
#undef TARGET
#undef NAME
