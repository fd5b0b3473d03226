/* Byte planes: the two ways between them and numbers, and images that have them, by every way of
 * loading. */
#include "check.h"

#include "format.h"
#include "image_builder.h"

static const uint32_t widths[] = {2, 4, 8};

#define GUARD 32u

struct buffers {
	uint8_t *data, *planes, *again;
};

/* Three buffers of that many bytes, at odd addresses, between bytes that nobody may change. */
static struct buffers make_buffers(uint64_t bytes, unsigned odd)
{
	struct buffers made;
	uint8_t **each[] = {&made.data, &made.planes, &made.again};
	uint64_t random = bytes + odd;

	for (unsigned i = 0; i < 3; i++) {
		*each[i] = malloc(bytes + 2 * GUARD + 16);
		CHECK(*each[i]);
		memset(*each[i], 0xee, bytes + 2 * GUARD + 16);
		*each[i] += GUARD + odd;
	}
	for (uint64_t i = 0; i < bytes; i++)
		made.data[i] = (uint8_t)image_random(&random);
	return made;
}

static void check_and_free(struct buffers *made, uint64_t bytes, unsigned odd)
{
	uint8_t *each[] = {made->data, made->planes, made->again};

	for (unsigned i = 0; i < 3; i++) {
		for (unsigned k = 1; k <= GUARD; k++)
			CHECK_EQ(each[i][-(int)k] + each[i][bytes + k - 1], 2 * 0xee);
		free(each[i] - GUARD - odd);
	}
}

static void both_ways_at_every_length(void)
{
	for (unsigned i = 0; i < 3; i++)
		for (uint64_t count = 0; count < 200; count++) {
			uint32_t width = widths[i];
			uint64_t bytes = count * width;
			unsigned odd = (unsigned)(count % 16);
			struct buffers made = make_buffers(bytes, odd);

			lr_planes_split(made.data, bytes, width, made.planes);
			for (uint64_t k = 0; k < bytes; k++)
				CHECK_EQ(made.planes[k % width * count + k / width], made.data[k]);
			lr_planes_join(made.planes, bytes, width, made.again);
			CHECK_MEM(made.again, made.data, bytes);
			check_and_free(&made, bytes, odd);
		}
}

static void whole_clusters(void)
{
	for (unsigned i = 0; i < 3; i++) {
		uint32_t width = widths[i], bytes = LR_CLUSTER_SIZE_MAX;
		struct buffers made = make_buffers(bytes, 0);

		lr_planes_split(made.data, bytes, width, made.planes);
		for (uint32_t k = 0; k < bytes; k += 4093) /* a prime: any byte of any number */
			CHECK_EQ(made.planes[k % width * (bytes / width) + k / width],
				 made.data[k]);
		lr_planes_join(made.planes, bytes, width, made.again);
		CHECK_MEM(made.again, made.data, bytes);
		check_and_free(&made, bytes, 0);
	}
}

#define LENGTH (3u << 20 | 12345u)

/* Clusters of every width; most have pages of other kinds, too, and one has none of data. */
static const char pattern[] = "2ddddddddddddddd"
			      "4zzzhhddddddddrd"
			      "8rrrrrrrrrrrrrrr"
			      "rrrrrrrrrrrrrrr4"
			      "zzzzzzzzzzzzzzz8"
			      "hhhhzzzzhhhhzzzz";

static const uint32_t sizes[][2] = {
	{4096, 4096}, {4096, 65536}, {65536, 65536}, {16384, 1 << 20}, {4096, 2 << 20}};

static void images_say_which_clusters_have_them(void)
{
	struct image image;
	struct lr_region_info region;
	struct lr_image_info info;
	lr_image *opened;
	lr_reader *reader;

	image_init(&image, 4096, 65536);
	image_add(&image, "plain", 65536, "d");
	image_add(&image, "numbers", 6 * 65536, pattern);
	image_build(&image);
	image_publish(&image);
	CHECK_EQ(lr_image_open(image.path, &opened, NULL), LR_OK);
	lr_image_get_info(opened, &info);
	CHECK_EQ(info.critical, LR_FORMAT_PLANES);
	CHECK_EQ(lr_image_get_region(opened, 0, &region), LR_OK);
	CHECK_EQ(region.planes, 0);
	CHECK_EQ(lr_image_get_region(opened, 1, &region), LR_OK);
	CHECK_EQ(region.planes, 2);
	CHECK_EQ(lr_reader_open(opened, &reader), LR_OK);
	for (uint64_t cluster = 0; cluster < 7; cluster++) {
		static const uint32_t expected[] = {0, 2, 4, 8, 4, 8, 0};
		struct lr_cluster_info found;

		CHECK_EQ(lr_reader_get_cluster(reader, cluster, &found, NULL), LR_OK);
		CHECK_EQ(found.planes,
			 cluster == 3 || cluster == 4 ? found.planes : expected[cluster]);
		CHECK(found.kind == LR_CLUSTER_ZSTD || found.planes == 0);
	}
	lr_reader_close(reader);
	lr_image_close(opened);
	image_fini(&image);
}

static void read_whole_and_in_parts(void)
{
	uint8_t *got = malloc(LENGTH);

	CHECK(got);
	for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		struct image image;
		uint64_t random = i;
		lr_image *opened;
		lr_reader *reader;

		image_make(&image, sizes[i][0], sizes[i][1], LENGTH, pattern);
		CHECK_EQ(lr_image_open(image.path, &opened, NULL), LR_OK);
		CHECK_EQ(lr_reader_open(opened, &reader), LR_OK);
		CHECK_EQ(lr_reader_read(reader, 0, 0, got, LENGTH, 0, NULL), LR_OK);
		CHECK_MEM(got, image.regions[0].bytes, LENGTH);
		for (int round = 0; round < 100; round++) {
			uint64_t offset = image_random(&random) % LENGTH;
			uint64_t bytes = image_random(&random) % (LENGTH - offset) % 100000;

			CHECK_EQ(lr_reader_read(reader, 0, offset, got, bytes, 0, NULL), LR_OK);
			CHECK_MEM(got, image.regions[0].bytes + offset, bytes);
		}
		lr_reader_close(reader);
		lr_image_close(opened);
		image_fini(&image);
	}
	free(got);
}

/* By touches in a scattered order, by populate, and by a fill. */
static void restored(void)
{
	for (unsigned i = 0; i < 3 * sizeof(sizes) / sizeof(sizes[0]); i++) {
		struct lr_session_options options = {.privilege = LR_PRIVILEGE_AUTO};
		struct lr_problem problem;
		struct image image;
		uint64_t done, random = i;
		lr_session *session;
		lr_image *opened;
		void *memory = NULL;

		image_make(&image, sizes[i / 3][0], sizes[i / 3][1], LENGTH, pattern);
		CHECK_EQ(lr_image_open(image.path, &opened, NULL), LR_OK);
		int code = lr_session_open(opened, &options, &session, &problem);
		if (code == LR_ERR_PERMISSION || code == LR_ERR_UNSUPPORTED)
			SKIP("no userfaultfd here: %s", strerror(problem.os_error));
		CHECK_EQ(code, LR_OK);
		CHECK_EQ(lr_session_map(session, 0, &memory, NULL), LR_OK);
		for (int touch = 0; touch < 200 && i % 3 == 0; touch++) {
			uint64_t at = image_random(&random) % LENGTH;

			CHECK_EQ(((volatile uint8_t *)memory)[at], image.regions[0].bytes[at]);
		}
		if (i % 3 == 1)
			CHECK_EQ(lr_session_populate(session, 0, 0, LENGTH, -1, &done, NULL),
				 LR_OK);
		if (i % 3 == 2)
			CHECK_EQ(lr_session_fill(session, NULL), LR_OK);
		CHECK_MEM(memory, image.regions[0].bytes, LENGTH);
		lr_session_close(session);
		lr_image_close(opened);
		image_fini(&image);
	}
}

/* Damage is found before a byte is joined, and the cluster after it is as good as ever. */
static void damage_is_found(void)
{
	struct image image;
	struct lr_problem problem;
	uint8_t got[4096], *file;
	uint64_t payload;

	image_make(&image, 4096, 65536, 3 * 65536, pattern);
	payload = image_get(image.file + image_entry_offset(&image, 1), 8);
	for (int sealed = 0; sealed < 2; sealed++) {
		lr_image *opened;
		lr_reader *reader;

		file = image.file + payload;
		memset(file, 0xff, 4); /* the frame's magic number */
		if (sealed)
			image_reseal(image.file, image.bytes, true);
		image_publish(&image);
		CHECK_EQ(lr_image_open(image.path, &opened, NULL), LR_OK);
		CHECK_EQ(lr_reader_open(opened, &reader), LR_OK);
		CHECK_EQ(lr_reader_read(reader, 0, 65536, got, 1, 0, &problem),
			 sealed ? LR_ERR_FRAME : LR_ERR_CHECKSUM);
		CHECK_EQ(problem.cluster, 1);
		CHECK_EQ(lr_reader_read(reader, 0, 0, got, sizeof(got), 0, NULL), LR_OK);
		CHECK_MEM(got, image.regions[0].bytes, sizeof(got));
		lr_reader_close(reader);
		lr_image_close(opened);
	}
	image_fini(&image);
}

static void entries_that_cannot_be_are_refused(void)
{
	/* Cluster 0 has planes, cluster 2 is raw, cluster 5 has no data. */
	static const struct {
		uint64_t cluster;
		uint8_t planes;
		int expected;
	} changes[] = {{0, 0, LR_OK},          {0, 4, LR_OK},        {0, 8, LR_OK},
		       {0, 1, LR_ERR_ENTRY},   {0, 3, LR_ERR_ENTRY}, {0, 16, LR_ERR_ENTRY},
		       {0, 255, LR_ERR_ENTRY}, {2, 4, LR_ERR_ENTRY}, {5, 4, LR_ERR_ENTRY}};

	for (unsigned i = 0; i < sizeof(changes) / sizeof(changes[0]); i++) {
		struct lr_cluster_info info;
		struct image image;
		lr_image *opened;
		lr_reader *reader;

		image_init(&image, 4096, 65536);
		image_add(&image, "memory", 6 * 65536,
			  "2ddddddddddddddd4dddddddddddddddrrrrrrrrrrrrrrrr"
			  "dddddddddddddddd8dddddddddddddddhzhzhzhzhzhzhzhz");
		image_build(&image);
		image.file[image_entry_offset(&image, changes[i].cluster) + LR_ENTRY_PLANES] =
			changes[i].planes;
		image_reseal(image.file, image.bytes, false);
		image_publish(&image);
		CHECK_EQ(lr_image_open(image.path, &opened, NULL), LR_OK);
		CHECK_EQ(lr_reader_open(opened, &reader), LR_OK);
		CHECK_EQ(lr_reader_get_cluster(reader, changes[i].cluster, &info, NULL),
			 changes[i].expected);
		lr_reader_close(reader);
		lr_image_close(opened);
		image_fini(&image);
	}
}

static const struct check_case cases[] = {
	CHECK_CASE(both_ways_at_every_length),
	CHECK_CASE(whole_clusters),
	CHECK_CASE(images_say_which_clusters_have_them),
	CHECK_CASE(read_whole_and_in_parts),
	CHECK_CASE(restored),
	CHECK_CASE(damage_is_found),
	CHECK_CASE(entries_that_cannot_be_are_refused),
};
CHECK_MAIN(cases)
