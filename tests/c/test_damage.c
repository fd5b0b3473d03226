/*
 * Damaged images at random: whatever is in the file, each way of reading it ends in an error code,
 * a signal of a fence, or bytes that are right; and never hangs, crashes or gives other bytes.
 *
 * Checksums are made right again after most damage, so that it gets past them. Then "right" can
 * only mean what the image now says: what reading without userfaultfd gives is what lazy memory
 * must give, byte for byte. Where checksums stay as they were, it is what was stored.
 *
 * DAMAGE_SEED=n repeats one run; DAMAGE_ROUNDS=n is its length.
 */
#include "check.h"

#include <sys/time.h>

#include "format.h"
#include "image_builder.h"

#define LENGTH (6 * 65536 + 1234)

static struct {
	struct image image;
	uint8_t *whole; /* the file as it was */
	uint64_t whole_bytes;
	uint8_t *expected; /* of region 0: by reading */
	uint8_t *readable; /* a byte a page: it could be read */
	unsigned errors, fenced, equal;
} all;

static void set_up(void)
{
	image_init(&all.image, 4096, 16384);
	image_add(&all.image, "memory", LENGTH, "ddrzhdzzzzzzzhhhhrrrrdddd");
	image_add(&all.image, "zeros", 3 << 20, "z");
	image_add(&all.image, "more", 40000, "dr");
	image_build(&all.image);
	all.whole_bytes = all.image.bytes;
	all.whole = malloc(all.whole_bytes);
	all.expected = malloc(LENGTH + 4096);
	all.readable = malloc(LENGTH / 4096 + 1);
	CHECK(all.whole && all.expected && all.readable);
	memcpy(all.whole, all.image.file, all.whole_bytes);
}

/* Where damage is: anywhere, or where it counts. */
static uint64_t random_place(uint64_t *random)
{
	uint64_t bytes = all.image.bytes, root = all.image.root_offset;

	switch (image_random(random) % 4) {
	case 0:
		return image_random(random) % bytes;
	case 1: /* footer */
		return bytes - 1 - image_random(random) % LR_FOOTER_RECORD_BYTES;
	case 2: /* root and region table */
		return root + image_random(random) % (bytes - root);
	default: /* the leaf's first entries */
		return all.image.first_leaf_offset + image_random(random) % 600;
	}
}

static void damage(uint64_t *random, bool *ret_sealed)
{
	struct image *image = &all.image;
	unsigned count = 1 + (unsigned)(image_random(random) % 3);

	image->bytes = all.whole_bytes;
	memcpy(image->file, all.whole, all.whole_bytes);
	for (unsigned i = 0; i < count; i++) {
		uint64_t at = random_place(random), value = image_random(random);

		switch (image_random(random) % 5) {
		case 0:
			image->file[at] ^= (uint8_t)(1u << value % 8);
			break;
		case 1:
			image->file[at] = (uint8_t)value;
			break;
		case 2:
			for (uint64_t j = at; j < at + value % 32 && j < image->bytes; j++)
				image->file[j] = 0;
			break;
		case 3: /* numbers at the edges of their types */
			if (at + 8 <= image->bytes)
				image_put(image->file + at,
					  value % 2 ? UINT64_MAX - value % 5 : 1ull << (value % 64),
					  8);
			break;
		default: /* a part of the file over another */
			for (uint64_t j = 0; j < 24 && at + j < image->bytes; j++)
				image->file[at + j] = all.whole[(value + j) % all.whole_bytes];
		}
	}
	*ret_sealed = image_random(random) % 8 != 0;
	if (image_random(random) % 16 == 0)
		image->bytes = image_random(random) % image->bytes;
	else if (*ret_sealed)
		image_reseal(image->file, image->bytes, image_random(random) % 2);
	image_publish(image);
}

/* Read all of region 0 page by page, and walk the other regions' clusters. */
static void read_all(const lr_image *opened, uint64_t length)
{
	struct lr_image_info info;
	lr_reader *reader;

	lr_image_get_info(opened, &info);
	CHECK_EQ(lr_reader_open(opened, &reader), LR_OK);
	for (uint64_t offset = 0; offset < length; offset += 4096) {
		uint64_t part = length - offset < 4096 ? length - offset : 4096;
		int code = lr_reader_read(reader, 0, offset, all.expected + offset, part, 0, NULL);

		CHECK(code == LR_OK || (code <= LR_ERR_EMPTY && code >= LR_ERR_FRAME));
		all.readable[offset / 4096] = code == LR_OK;
		all.errors += code != LR_OK;
	}
	for (uint64_t cluster = 0; cluster < info.cluster_count && cluster < 100; cluster++) {
		static uint8_t data[LR_CLUSTER_SIZE_MAX];
		int64_t got = lr_reader_get_data(reader, cluster, data, NULL);

		CHECK(got <= (int64_t)info.cluster_size);
	}
	lr_reader_close(reader);
}

/* Touch all of region 0, restored lazily. */
static void touch_all(const lr_image *opened, uint64_t length)
{
	struct lr_session_options options = {.privilege = LR_PRIVILEGE_AUTO};
	struct lr_problem problem;
	struct lr_session_stats stats;
	lr_session *session;
	unsigned fenced = 0;
	void *mapped;
	uint8_t *memory;

	int code = lr_session_open(opened, &options, &session, &problem);

	if (code == LR_ERR_PERMISSION || code == LR_ERR_UNSUPPORTED)
		SKIP("no userfaultfd here: %s", strerror(problem.os_error));
	/* An image may say that it has more clusters than there is address space for. */
	if (code == LR_ERR_NOMEM)
		return;
	CHECK_EQ(code, LR_OK);
	CHECK_EQ(lr_session_map(session, 0, &mapped, NULL), LR_OK);
	memory = mapped;
	for (uint64_t offset = 0; offset < length; offset += 4096) {
		uint64_t part = length - offset < 4096 ? length - offset : 4096;
		int raised = check_touch(memory + offset, 0);

		fenced += raised != 0;
		if (!all.readable[offset / 4096]) {
			CHECK_NE(raised, 0);
		} else if (raised == 0) {
			CHECK_MEM(memory + offset, all.expected + offset, part);
			all.equal++;
		}
		/* What can be read may be fenced only with others of its page or cluster. */
	}
	lr_session_get_stats(session, &stats);
	CHECK_EQ(stats.errors != 0, fenced != 0);
	all.fenced += fenced;
	lr_session_close(session);
}

static void one_round(uint64_t seed)
{
	uint64_t random = seed;
	struct lr_region_info region;
	lr_image *opened = NULL;
	bool is_sealed;
	int code;

	damage(&random, &is_sealed);
	code = lr_image_open(all.image.path, &opened, NULL);
	if (code < 0) {
		CHECK(code <= LR_ERR_EMPTY && code >= LR_ERR_FRAME);
		all.errors++;
		return;
	}
	if (lr_image_get_region(opened, 0, &region) == LR_OK && region.length > 0
	    && region.length <= LENGTH) {
		read_all(opened, region.length);
		for (uint64_t i = 0; !is_sealed && i < region.length; i++)
			if (all.readable[i / 4096])
				CHECK_EQ(all.expected[i], all.image.regions[0].bytes[i]);
		touch_all(opened, region.length);
	}
	lr_image_close(opened);
}

static void ends_in_an_error_or_right_bytes(void)
{
	const char *seed_text = getenv("DAMAGE_SEED"), *rounds_text = getenv("DAMAGE_ROUNDS");
	unsigned rounds = rounds_text ? (unsigned)atoi(rounds_text) : 3000 / CHECK_SANITIZER_FACTOR;
	uint64_t seed = seed_text ? strtoull(seed_text, NULL, 0) : (uint64_t)getpid() * 1000003u;
	struct itimerval watch = {.it_value = {.tv_sec = (time_t)(5 * CHECK_SANITIZER_FACTOR
								  * check_time_factor())}},
			 off = {0};

	set_up();
	printf("DAMAGE_SEED=%ju DAMAGE_ROUNDS=%u\n", (uintmax_t)seed, rounds);
	fflush(stdout);
	for (unsigned round = 0; round < rounds; round++) {
		/* One round that hangs is a death by SIGALRM; the seed above brings it back. */
		CHECK_CALL(setitimer(ITIMER_REAL, &watch, NULL));
		one_round(seed + round);
	}
	CHECK_CALL(setitimer(ITIMER_REAL, &off, NULL));
	/* It would prove nothing if all were refused at once, or nothing noticed. */
	CHECK(rounds < 300 || (all.errors > rounds / 10 && all.fenced > rounds / 10));
	CHECK(rounds < 300 || all.equal > rounds);
	printf("%u errors, %u pages fenced, %u equal\n", all.errors, all.fenced, all.equal);
	free(all.whole);
	free(all.expected);
	free(all.readable);
	image_fini(&all.image);
}

static const struct check_case cases[] = {CHECK_CASE_LIMIT(ends_in_an_error_or_right_bytes, 60)};
CHECK_MAIN(cases)
