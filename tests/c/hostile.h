/*
 * Reading images that mean harm, in a bounded way. What the fuzzers of tests/fuzz call for each
 * input, and test_fuzz_corpus.c for each image that they left.
 *
 * Both abort with a message where a promise is broken: a code that is none of the image's, bytes
 * that are not the same by another way, or something outside its bounds. An image that is refused
 * is as good as one that is read.
 */
#ifndef LR_TESTS_HOSTILE_H
#define LR_TESTS_HOSTILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The image's path is good until the next call, in this process. */
const char *hostile_publish(const uint8_t *data, size_t bytes);

/* Open it, walk the index, decode clusters, read across them, and see the file shrink. */
void hostile_read(const uint8_t *data, size_t bytes);

/* Restore it lazily and touch some pages: each is what reading gives, or raises a signal where
 * reading gives an error. Does nothing where hostile_can_restore() says no. */
void hostile_restore(const uint8_t *data, size_t bytes);
bool hostile_can_restore(void);

/* How far the calls so far have come, to see that a corpus is worth its name. */
struct hostile_counts {
	uint64_t images;
	uint64_t opened;
	uint64_t clusters_read;
	uint64_t clusters_refused;
	uint64_t sessions;
	uint64_t pages_touched;
	uint64_t pages_fenced;
};
extern struct hostile_counts hostile_counts;

#define HOSTILE_FAIL(...) hostile_fail(__FILE__, __LINE__, __VA_ARGS__)
#define HOSTILE_CHECK(condition)                                                                   \
	do {                                                                                       \
		if (!(condition))                                                                  \
			HOSTILE_FAIL("%s", #condition);                                            \
	} while (0)
__attribute__((noreturn, format(printf, 3, 4))) void hostile_fail(const char *file, int line,
								  const char *format, ...);

#endif
