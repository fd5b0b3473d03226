/* Looking clusters up: every damage to a node or an entry is found before anything is believed. */
#include "check.h"

#include "format.h"
#include "image_builder.h"

static lr_image *open_image(struct image *image, lr_reader **ret_reader)
{
	lr_image *opened;
	int code;

	image_publish(image);
	code = lr_image_open(image->path, &opened, NULL);
	CHECK_EQ(code, LR_OK);
	CHECK_EQ(lr_reader_open(opened, ret_reader), LR_OK);
	return opened;
}

static void close_image(struct image *image, lr_image *opened, lr_reader *reader)
{
	lr_reader_close(reader);
	lr_image_close(opened);
	image_fini(image);
}

/* Every cluster is what it was made as, through trees of one, two and three levels. */
static void finds_every_cluster(void)
{
	static const uint64_t lengths[] = {1, 4096, 256 * 4096, 256 * 4096 + 1, 66000 * 4096};

	for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		struct image image;
		struct lr_cluster_info info;
		lr_reader *reader;
		lr_image *opened;

		image_init(&image, 4096, 4096);
		image_add(&image, "a", lengths[i], "hzd");
		image_build(&image);
		opened = open_image(&image, &reader);
		for (uint64_t cluster = 0; cluster < image.cluster_count; cluster++) {
			CHECK_EQ(lr_reader_get_cluster(reader, cluster, &info, NULL), LR_OK);
			CHECK_EQ(info.kind, cluster % 3);
			CHECK_EQ(info.states[0], cluster % 3);
		}
		CHECK_EQ(lr_reader_get_cluster(reader, image.cluster_count, &info, NULL),
			 LR_ERR_ARGUMENT);
		close_image(&image, opened, reader);
	}
}

/* One entry for many clusters: the run goes to the end of what it stands for. */
static void tells_runs(void)
{
	struct image image;
	struct lr_cluster_info info;
	lr_reader *reader;
	lr_image *opened;

	image_init(&image, 4096, 4096);
	image_add(&image, "data", 4096, "d");
	image_add(&image, "zeros", 1ull << 30, "z");
	image_add(&image, "holes", 1ull << 30, "h");
	image_build(&image);
	opened = open_image(&image, &reader);
	CHECK_EQ(lr_reader_get_cluster(reader, 1, &info, NULL), LR_OK);
	CHECK_EQ(info.run, 1);
	CHECK_EQ(info.kind, LR_CLUSTER_ZERO);
	CHECK_EQ(lr_reader_get_cluster(reader, 300, &info, NULL), LR_OK);
	CHECK_EQ(info.run, 512 - 300);
	CHECK_EQ(lr_reader_get_cluster(reader, 65536 * 5, &info, NULL), LR_OK);
	CHECK_EQ(info.kind, LR_CLUSTER_HOLE);
	CHECK_EQ(info.run, 65536);
	CHECK_EQ(lr_reader_get_cluster(reader, image.cluster_count - 1, &info, NULL), LR_OK);
	CHECK_EQ(info.run, 1);
	close_image(&image, opened, reader);
}

struct damage {
	const char *what;
	char where; /* n node, c entry of cluster 0, m of cluster 1, t tree's reference */
	unsigned field;
	unsigned width_bytes;
	uint64_t value;
	int expected;
};

/* Clusters of 16 pages: 0 is "dddddddddddddddd", 1 is all random, 2 zeros, 3 holes, 4 mixed. */
static const char pages[] = "dddddddddddddddd"
			    "rrrrrrrrrrrrrrrr"
			    "zzzzzzzzzzzzzzzz"
			    "hhhhhhhhhhhhhhhh"
			    "hzhzhzhzhzhzhzhz";

static const struct damage damages[] = {
	{"level", 'n', LR_NODE_LEVEL, 4, 1, LR_ERR_NODE},
	{"no entries", 'n', LR_NODE_COUNT, 4, 0, LR_ERR_NODE},
	{"too many entries", 'n', LR_NODE_COUNT, 4, UINT32_MAX, LR_ERR_NODE},
	{"first cluster", 'n', LR_NODE_FIRST_CLUSTER, 8, 256, LR_ERR_NODE},
	{"node outside", 't', LR_ENTRY_OFFSET, 8, UINT64_MAX, LR_ERR_NODE},
	{"node in the magic", 't', LR_ENTRY_OFFSET, 8, 0, LR_ERR_NODE},
	{"long node", 't', LR_ENTRY_SIZE, 4, UINT32_MAX, LR_ERR_NODE},
	{"short node", 't', LR_ENTRY_SIZE, 4, 15, LR_ERR_NODE},
	{"payload outside", 'c', LR_ENTRY_OFFSET, 8, UINT64_MAX, LR_ERR_ENTRY},
	{"payload at the end", 'c', LR_ENTRY_OFFSET, 8, 1ull << 40, LR_ERR_ENTRY},
	{"payload in the magic", 'c', LR_ENTRY_OFFSET, 8, 3, LR_ERR_ENTRY},
	{"payload of none", 'c', LR_ENTRY_SIZE, 4, 0, LR_ERR_ENTRY},
	{"frame as long as its data", 'c', LR_ENTRY_SIZE, 4, 65536, LR_ERR_ENTRY},
	{"kind of hole with data", 'c', LR_ENTRY_KIND, 1, LR_CLUSTER_HOLE, LR_ERR_ENTRY},
	{"kind of zero with data", 'c', LR_ENTRY_KIND, 1, LR_CLUSTER_ZERO, LR_ERR_ENTRY},
	{"kind of mixed with data", 'c', LR_ENTRY_KIND, 1, LR_CLUSTER_MIXED, LR_ERR_ENTRY},
	{"raw of another length", 'c', LR_ENTRY_KIND, 1, LR_CLUSTER_RAW, LR_ERR_ENTRY},
	{"kind of the parent", 'c', LR_ENTRY_KIND, 1, 5, LR_ERR_ENTRY},
	{"kind of none", 'c', LR_ENTRY_KIND, 1, 255, LR_ERR_ENTRY},
	{"planes without the feature", 'c', LR_ENTRY_PLANES, 1, 4, LR_ERR_ENTRY},
	{"reserved", 'c', LR_ENTRY_RESERVED, 1, 1, LR_ERR_ENTRY},
	{"reserved at the end", 'c', LR_ENTRY_RESERVED + 5, 1, 1, LR_ERR_ENTRY},
	{"state of the parent", 'c', LR_ENTRY_STATES, 1, 0xab, LR_ERR_ENTRY},
	{"no data pages", 'c', LR_ENTRY_STATES, 4, 0x55555555, LR_ERR_ENTRY},
	{"a data page past the cluster", 'c', LR_ENTRY_STATES + 4, 1, 2, LR_ERR_ENTRY},
	{"a zero page past the cluster", 'c', LR_ENTRY_STATES + 7, 1, 0x40, LR_ERR_ENTRY},
	{"fewer pages than a raw cluster", 'm', LR_ENTRY_STATES, 1, 0xa9, LR_ERR_ENTRY},
};

/* Each field, with checksums that are right, gives its own code, and no byte is given out. */
static void refuses_each_wrong_field(void)
{
	for (size_t i = 0; i < sizeof(damages) / sizeof(damages[0]); i++) {
		const struct damage *damage = &damages[i];
		struct image image;
		struct lr_problem problem = {0};
		uint64_t cluster = damage->where == 'm', place;
		uint8_t data[65536];
		lr_reader *reader;
		lr_image *opened;
		int64_t code;

		image_make(&image, 4096, 65536, 5 * 65536, pages);
		place = damage->where == 'n'   ? image.first_leaf_offset
			: damage->where == 't' ? image.root_offset + LR_ROOT_TREE
					       : image_entry_offset(&image, cluster);
		image_put(image.file + place + damage->field, damage->value, damage->width_bytes);
		image_reseal(image.file, image.bytes, false);
		opened = open_image(&image, &reader);
		code = lr_reader_get_data(reader, cluster, data, &problem);
		if (code != damage->expected || problem.code != code || problem.cluster != cluster)
			CHECK_FAIL("%s: got %s (cluster %ju), expected %s", damage->what,
				   lr_error_name((int)code), (uintmax_t)problem.cluster,
				   lr_error_name(damage->expected));
		close_image(&image, opened, reader);
	}
}

/* More data pages than a cluster has would be written past the end of the buffer: the largest that
 * a states word can say, stored raw, its checksum right. */
static void refuses_data_pages_past_the_cluster(void)
{
	struct image image;
	struct lr_problem problem;
	uint8_t data[4096], *entry;
	lr_reader *reader;
	lr_image *opened;

	image_make(&image, 4096, 4096, 40 * 4096, "r");
	entry = image.file + image_entry_offset(&image, 0);
	image_put(entry + LR_ENTRY_STATES, 0xaaaaaaaaaaaaaaaaull, 8);
	image_put(entry + LR_ENTRY_SIZE, 32 * 4096, 4);
	image_reseal(image.file, image.bytes, true);
	opened = open_image(&image, &reader);
	CHECK_EQ(lr_reader_get_data(reader, 0, data, &problem), LR_ERR_ENTRY);
	close_image(&image, opened, reader);
}

/* States of a region's last cluster end with the region. */
static void refuses_pages_past_the_region(void)
{
	struct image image;
	struct lr_cluster_info info;
	lr_reader *reader;
	lr_image *opened;

	image_make(&image, 4096, 65536, 65536 + 5000, "d");
	image.file[image_entry_offset(&image, 1) + LR_ENTRY_STATES] |= 1 << 4;
	image_reseal(image.file, image.bytes, false);
	opened = open_image(&image, &reader);
	CHECK_EQ(lr_reader_get_cluster(reader, 0, &info, NULL), LR_OK);
	CHECK_EQ(lr_reader_get_cluster(reader, 1, &info, NULL), LR_ERR_ENTRY);
	close_image(&image, opened, reader);
}

/* Uniform kinds must say the same as their states. */
static void refuses_kinds_that_contradict_states(void)
{
	static const struct {
		unsigned cluster, kind;
	} wrong[] = {{2, LR_CLUSTER_HOLE},  {2, LR_CLUSTER_MIXED}, {3, LR_CLUSTER_ZERO},
		     {3, LR_CLUSTER_MIXED}, {4, LR_CLUSTER_ZERO},  {4, LR_CLUSTER_HOLE},
		     {2, LR_CLUSTER_RAW}};

	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct image image;
		struct lr_cluster_info info;
		lr_reader *reader;
		lr_image *opened;

		image_make(&image, 4096, 65536, 5 * 65536, pages);
		image.file[image_entry_offset(&image, wrong[i].cluster) + LR_ENTRY_KIND] =
			(uint8_t)wrong[i].kind;
		image_reseal(image.file, image.bytes, false);
		opened = open_image(&image, &reader);
		CHECK_EQ(lr_reader_get_cluster(reader, wrong[i].cluster, &info, NULL),
			 LR_ERR_ENTRY);
		close_image(&image, opened, reader);
	}
}

/* A tree that points to itself comes to an end: each level must say which it is. */
static void refuses_a_tree_in_circles(void)
{
	struct image image;
	struct lr_cluster_info info;
	uint64_t ref, node;
	lr_reader *reader;
	lr_image *opened;

	image_init(&image, 4096, 4096);
	image_add(&image, "a", 600 * 4096, "d");
	image_build(&image);
	ref = image.root_offset + LR_ROOT_TREE;
	node = image_get(image.file + ref + LR_ENTRY_OFFSET, 8);
	/* The first child of the upper node is that node itself. */
	memcpy(image.file + node + LR_NODE_HEAD_BYTES, image.file + ref, LR_REF_BYTES);
	image_reseal(image.file, image.bytes, false);
	opened = open_image(&image, &reader);
	CHECK_EQ(lr_reader_get_cluster(reader, 0, &info, NULL), LR_ERR_NODE);
	CHECK_EQ(lr_reader_get_cluster(reader, 256, &info, NULL), LR_OK);
	close_image(&image, opened, reader);
}

/* A file that shrank: an error, and where. What was read before stays usable. */
static void tells_a_file_that_shrank(void)
{
	struct image image;
	struct lr_problem problem;
	struct lr_cluster_info info;
	lr_reader *reader;
	lr_image *opened;

	image_init(&image, 4096, 4096);
	image_add(&image, "a", 600 * 4096, "r");
	image_build(&image);
	opened = open_image(&image, &reader);
	CHECK_EQ(lr_reader_get_cluster(reader, 0, &info, NULL), LR_OK);
	CHECK_CALL(ftruncate(image.fd, 300 * 4096));
	CHECK_EQ(lr_reader_get_cluster(reader, 1, &info, NULL), LR_OK);
	CHECK_EQ(lr_reader_get_cluster(reader, 550, &info, &problem), LR_ERR_SHORT);
	CHECK_EQ(problem.cluster, 550);
	CHECK(problem.file_offset >= 300 * 4096);
	CHECK_EQ(lr_reader_get_cluster(reader, 550, &info, NULL), LR_ERR_SHORT);
	close_image(&image, opened, reader);
}

static const struct check_case cases[] = {
	CHECK_CASE(finds_every_cluster),           CHECK_CASE(tells_runs),
	CHECK_CASE(refuses_each_wrong_field),      CHECK_CASE(refuses_data_pages_past_the_cluster),
	CHECK_CASE(refuses_pages_past_the_region), CHECK_CASE(refuses_kinds_that_contradict_states),
	CHECK_CASE(refuses_a_tree_in_circles),     CHECK_CASE(tells_a_file_that_shrank),
};
CHECK_MAIN(cases)
