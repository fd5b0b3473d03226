/*
 * A set-associative table: the digest chooses a set of WAYS entries. It begins with a few sets, and
 * where one is full it grows by linear hashing: one set after another is split in two, the second
 * half becoming the last set. So it takes memory for what is in it, densely: entries strewn over
 * the whole size would be a page each, that the kernel has to bring. At its full size nothing is
 * moved any more, and it forgets one old cluster for each new one where a set is full.
 *
 * One mutex guards it. A look-up takes about 100 ns and belongs to a cluster that takes 100 µs to
 * compress, so threads hardly meet; and what a sequence lock would save is less than the doubt
 * about its memory orders.
 */
#include "lazyrestore.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define DIGEST_BYTES 32u
#define WAYS         8u
#define FIRST_SETS   64u

struct entry {
	uint8_t digest[DIGEST_BYTES];
	uint64_t
		payload_offset; /* 0: this entry is empty; no payload lies at the start of a file */
	uint32_t payload_bytes;
	uint32_t crc32c;
	uint32_t kind;
	uint32_t planes;
};

/* `next` is the way to overwrite when all are full: the oldest, because they are filled in turn. */
struct set {
	struct entry ways[WAYS];
	uint64_t next;
};

/* `round` sets, a power of two, were there when this round of splitting began; those before `split`
 * were split in it. So there are round + split sets. */
struct lr_seen {
	pthread_mutex_t lock;
	struct set *sets;
	uint64_t round;
	uint64_t split;
	uint64_t max_sets;
	uint64_t mapped_bytes;
};

static_assert(sizeof(struct entry) == 56,
	      "an entry is 56 bytes: see the limit on the table's size");

int lr_seen_open(uint64_t max_bytes, lr_seen **ret_seen)
{
	uint64_t max_sets = max_bytes / sizeof(struct set);
	if (max_sets == 0 || max_sets > SIZE_MAX / sizeof(struct set))
		return LR_ERR_ARGUMENT;

	lr_seen *seen = calloc(1, sizeof(*seen));
	if (!seen)
		return LR_ERR_NOMEM;
	seen->max_sets = max_sets;
	seen->round = FIRST_SETS;
	while (seen->round > max_sets)
		seen->round /= 2;
	seen->mapped_bytes = max_sets * sizeof(struct set);
	seen->sets = mmap(NULL, seen->mapped_bytes, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (seen->sets == MAP_FAILED) {
		free(seen);
		return LR_ERR_NOMEM;
	}
	/* A huge page for each cluster that is put would be the whole table, at once. */
	madvise(seen->sets, seen->mapped_bytes, MADV_NOHUGEPAGE);
	pthread_mutex_init(&seen->lock, NULL);
	*ret_seen = seen;
	return LR_OK;
}

void lr_seen_close(lr_seen *seen)
{
	if (!seen)
		return;
	munmap(seen->sets, seen->mapped_bytes);
	pthread_mutex_destroy(&seen->lock);
	free(seen);
}

static uint64_t set_number(const lr_seen *seen, const uint8_t *digest)
{
	uint64_t hash;
	memcpy(&hash, digest, sizeof(hash)); /* a digest's bytes are as good as random */
	uint64_t number = hash & (seen->round - 1);
	return number < seen->split ? hash & (2 * seen->round - 1) : number;
}

static struct set *set_of(const lr_seen *seen, const uint8_t *digest)
{
	return &seen->sets[set_number(seen, digest)];
}

/* Split the next set in two. Sets have not yet forgotten anything: the first `next` ways are in
 * use, the oldest first, and so they are in both halves. */
static void split_next(lr_seen *seen)
{
	struct set *set = &seen->sets[seen->split];
	struct set *half = &seen->sets[seen->round + seen->split];
	struct set before = *set;

	memset(set, 0, sizeof(*set));
	if (++seen->split == seen->round) {
		seen->round *= 2;
		seen->split = 0;
	}
	for (unsigned way = 0; way < before.next; way++) {
		struct set *to = set_of(seen, before.ways[way].digest);
		assert(to == set || to == half);
		to->ways[to->next++] = before.ways[way];
	}
}

/* The set for a digest that is about to be put, with room if there can be any. */
static struct set *set_with_room(lr_seen *seen, const uint8_t *digest)
{
	struct set *set = set_of(seen, digest);

	while (set->next >= WAYS && seen->round + seen->split < seen->max_sets) {
		split_next(seen);
		set = set_of(seen, digest);
	}
	return set;
}

static struct entry *entry_of(struct set *set, const uint8_t *digest)
{
	for (unsigned way = 0; way < WAYS; way++) {
		struct entry *entry = &set->ways[way];
		if (entry->payload_offset != 0 && memcmp(entry->digest, digest, DIGEST_BYTES) == 0)
			return entry;
	}
	return NULL;
}

int lr_seen_find(const lr_seen *seen, const uint8_t *digest, struct lr_stored_cluster *ret_stored)
{
	pthread_mutex_t *lock =
		(pthread_mutex_t *)&seen->lock; /* const is the table, not its lock */

	pthread_mutex_lock(lock);
	const struct entry *entry = entry_of(set_of(seen, digest), digest);
	if (entry)
		*ret_stored = (struct lr_stored_cluster){
			.payload_offset = entry->payload_offset,
			.payload_bytes = entry->payload_bytes,
			.crc32c = entry->crc32c,
			.kind = entry->kind,
			.planes = entry->planes,
		};
	pthread_mutex_unlock(lock);
	return entry != NULL;
}

void lr_seen_put(lr_seen *seen, const uint8_t *digest, const struct lr_stored_cluster *stored)
{
	assert(stored->payload_offset != 0);
	pthread_mutex_lock(&seen->lock);
	struct entry *entry = entry_of(set_of(seen, digest), digest);
	if (!entry) {
		struct set *set = set_with_room(seen, digest);
		entry = &set->ways[set->next++ % WAYS];
	}
	memcpy(entry->digest, digest, DIGEST_BYTES);
	entry->payload_offset = stored->payload_offset;
	entry->payload_bytes = stored->payload_bytes;
	entry->crc32c = stored->crc32c;
	entry->kind = stored->kind;
	entry->planes = stored->planes;
	pthread_mutex_unlock(&seen->lock);
}
