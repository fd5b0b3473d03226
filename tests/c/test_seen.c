#include "check.h"

#include <pthread.h>

#include "lazyrestore.h"

/* Spread over all sets, as a real digest is; and different for each number. */
static void make_digest(uint64_t number, uint8_t digest[32])
{
	for (unsigned i = 0; i < 4; i++) {
		uint64_t word = (number + 1) * 0x9e3779b97f4a7c15ull + i;
		word ^= word >> 29;
		word *= 0xbf58476d1ce4e5b9ull;
		word ^= word >> 32;
		memcpy(digest + 8 * i, &word, 8);
	}
}

static struct lr_stored_cluster make_place(uint64_t number)
{
	return (struct lr_stored_cluster){
		.payload_offset = 1000 + number,
		.payload_bytes = (uint32_t)(number * 3),
		.crc32c = (uint32_t)(number * 7),
		.kind = 2 + (uint32_t)(number % 2),
		.planes = (uint32_t)(number % 9),
	};
}

static void put(lr_seen *seen, uint64_t number)
{
	uint8_t digest[32];
	struct lr_stored_cluster place = make_place(number);

	make_digest(number, digest);
	lr_seen_put(seen, digest, &place);
}

static int find(const lr_seen *seen, uint64_t number)
{
	uint8_t digest[32];
	struct lr_stored_cluster found, expected = make_place(number);

	make_digest(number, digest);
	if (!lr_seen_find(seen, digest, &found))
		return 0;
	CHECK_EQ(found.payload_offset, expected.payload_offset);
	CHECK_EQ(found.payload_bytes, expected.payload_bytes);
	CHECK_EQ(found.crc32c, expected.crc32c);
	CHECK_EQ(found.kind, expected.kind);
	CHECK_EQ(found.planes, expected.planes);
	return 1;
}

static lr_seen *open_table(uint64_t max_bytes)
{
	lr_seen *seen = NULL;
	CHECK_EQ(lr_seen_open(max_bytes, &seen), LR_OK);
	return seen;
}

static void finds_what_was_put_and_nothing_else(void)
{
	lr_seen *seen = open_table(1 << 20);

	CHECK_EQ(find(seen, 5), 0);
	for (uint64_t i = 0; i < 1000; i++)
		put(seen, i);
	for (uint64_t i = 0; i < 1000; i++)
		CHECK_EQ(find(seen, i), 1);
	for (uint64_t i = 1000; i < 5000; i++)
		CHECK_EQ(find(seen, i), 0);
	lr_seen_close(seen);
}

static void all_32_bytes_of_a_digest_count(void)
{
	lr_seen *seen = open_table(1 << 20);
	struct lr_stored_cluster found;
	uint8_t digest[32];

	put(seen, 1);
	for (unsigned i = 0; i < 32; i++) {
		make_digest(1, digest);
		digest[i] ^= 1;
		CHECK_EQ(lr_seen_find(seen, digest, &found), 0);
	}
	CHECK_EQ(find(seen, 1), 1);
	lr_seen_close(seen);
}

static void the_last_place_of_a_digest_is_the_one(void)
{
	lr_seen *seen = open_table(1 << 20);
	struct lr_stored_cluster place = make_place(9), found;
	uint8_t digest[32];

	make_digest(1, digest);
	put(seen, 1);
	lr_seen_put(seen, digest, &place);
	CHECK_EQ(lr_seen_find(seen, digest, &found), 1);
	CHECK_EQ(found.payload_offset, place.payload_offset);
	lr_seen_close(seen);
}

/* From the page tables: the counter in statm is off by some pages a thread before Linux 6.2. */
static uint64_t resident_bytes(void)
{
	char line[256];
	uint64_t kib = 0;
	FILE *file = fopen("/proc/self/smaps_rollup", "re");

	CHECK(file);
	while (kib == 0 && fgets(line, sizeof(line), file))
		if (sscanf(line, "Rss: %ju", &kib) != 1)
			kib = 0;
	fclose(file);
	CHECK(kib > 0);
	return kib * 1024;
}

static void forgets_when_full_and_stays_within_its_size(void)
{
	enum { MAX_BYTES = 4 << 20, PUT = 1000000 };
	uint64_t before = resident_bytes(), known = 0, newest = 0;
	lr_seen *seen = open_table(MAX_BYTES);

	for (uint64_t i = 0; i < PUT; i++) {
		put(seen, i);
		CHECK_EQ(find(seen, i), 1);
	}
	for (uint64_t i = 0; i < PUT; i++)
		known += (uint64_t)find(seen, i);
	for (uint64_t i = PUT - 10000; i < PUT; i++)
		newest += (uint64_t)find(seen, i);
	/* Of the table's 72,000 entries none is lost, and it is the old ones that are forgotten. */
	CHECK(known > 60000);
	CHECK(known < MAX_BYTES / 56);
	CHECK(newest > 9990);
	/* A sanitizer keeps several bytes of its own for each. */
	CHECK(resident_bytes() - before
	      < (MAX_BYTES + (1 << 20)) * (CHECK_SANITIZER_FACTOR == 1 ? 1ull : 10ull));
	lr_seen_close(seen);
}

static void costs_nothing_until_used(void)
{
	uint64_t before = resident_bytes();
	lr_seen *seen = open_table(1ull << 34);

	for (uint64_t i = 0; i < 16; i++)
		put(seen, i);
	CHECK(resident_bytes() - before < 1 << 20);
	lr_seen_close(seen);
}

static void refuses_a_size_without_room(void)
{
	lr_seen *seen = NULL;

	CHECK_EQ(lr_seen_open(0, &seen), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_seen_open(100, &seen), LR_ERR_ARGUMENT);
	CHECK(seen == NULL);
	lr_seen_close(NULL);
}

static atomic_int is_done;

static void *find_all_the_time(void *seen)
{
	uint64_t found = 0;

	/* find() checks that no place is half one cluster's and half another's. */
	while (!atomic_load(&is_done))
		for (uint64_t i = 0; i < 2000; i++)
			found += (uint64_t)find(seen, i);
	return found ? seen : NULL;
}

static void is_whole_while_another_thread_puts(void)
{
	lr_seen *seen = open_table(64 << 10); /* small: everything is overwritten all the time */
	pthread_t threads[3];

	put(seen, 0);
	for (unsigned i = 0; i < 3; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, find_all_the_time, seen), 0);
	for (unsigned round = 0; round < 200; round++)
		for (uint64_t i = 0; i < 2000; i++)
			put(seen, i);
	atomic_store(&is_done, 1);
	for (unsigned i = 0; i < 3; i++) {
		void *found;
		CHECK_EQ(pthread_join(threads[i], &found), 0);
		CHECK(found == seen);
	}
	lr_seen_close(seen);
}

static const struct check_case cases[] = {
	CHECK_CASE(finds_what_was_put_and_nothing_else),
	CHECK_CASE(all_32_bytes_of_a_digest_count),
	CHECK_CASE(the_last_place_of_a_digest_is_the_one),
	CHECK_CASE(forgets_when_full_and_stays_within_its_size),
	CHECK_CASE(costs_nothing_until_used),
	CHECK_CASE(refuses_a_size_without_room),
	CHECK_CASE_LIMIT(is_whole_while_another_thread_puts, 60),
};
CHECK_MAIN(cases)
