/* What was touched: each cluster once, in order, however many threads note it. */
#include "check.h"

#include <pthread.h>

#include "image_builder.h"
#include "record.h"
#include "stats.h"

static void keeps_each_once_in_order(void)
{
	static const uint64_t notes[] = {7, 3, 7, 99, 3, 0, 64};
	static const uint64_t expected[] = {7, 3, 99, 0, 64};
	struct lr_touched touched[8];
	struct lr_record record;
	uint64_t before_ns = 0;

	CHECK_EQ(lr_record_open(&record, 100), LR_OK);
	CHECK_EQ(lr_record_get(&record, 0, touched, 8), 0);
	for (size_t i = 0; i < sizeof(notes) / sizeof(notes[0]); i++)
		lr_record_note(&record, notes[i]);
	CHECK_EQ(lr_record_get(&record, 0, touched, 8), 5);
	for (int i = 0; i < 5; i++) {
		CHECK_EQ(touched[i].cluster, expected[i]);
		CHECK(touched[i].time_ns > 0);
		CHECK(touched[i].time_ns >= before_ns);
		before_ns = touched[i].time_ns;
	}
	CHECK_EQ(lr_record_get(&record, 3, touched, 8), 2);
	CHECK_EQ(touched[0].cluster, 0);
	CHECK_EQ(lr_record_get(&record, 0, touched, 2), 2);
	CHECK_EQ(lr_record_get(&record, 5, touched, 8), 0);
	lr_record_close(&record);
	lr_record_close(&record);
}

static void notes_nothing_unless_it_is_open(void)
{
	struct lr_record record = {0};
	struct lr_touched touched;

	lr_record_note(&record, 5);
	CHECK_EQ(lr_record_get(&record, 0, &touched, 1), 0);
	lr_record_close(&record);
}

#define CLUSTERS 20000u
#define NOTERS   4

static void *note_all(void *argument)
{
	struct lr_record *record = argument;

	for (uint64_t i = 0; i < CLUSTERS; i++)
		lr_record_note(record, (i * 7919) % CLUSTERS);
	return NULL;
}

/* What is read meanwhile is whole, or said not to be. */
static void takes_notes_from_many_threads(void)
{
	static struct lr_touched touched[CLUSTERS + 1];
	static bool is_seen[CLUSTERS];
	struct lr_record record;
	pthread_t threads[NOTERS];
	uint64_t count;

	CHECK_EQ(lr_record_open(&record, CLUSTERS), LR_OK);
	for (int i = 0; i < NOTERS; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, note_all, &record), 0);
	do {
		count = lr_record_get(&record, 0, touched, CLUSTERS + 1);
		for (uint64_t i = 0; i < count; i++)
			CHECK(touched[i].cluster < CLUSTERS
			      || (touched[i].cluster == UINT64_MAX && touched[i].time_ns == 0));
	} while (count < CLUSTERS);
	for (int i = 0; i < NOTERS; i++)
		pthread_join(threads[i], NULL);
	CHECK_EQ(lr_record_get(&record, 0, touched, CLUSTERS + 1), CLUSTERS);
	for (uint64_t i = 0; i < CLUSTERS; i++) {
		CHECK(touched[i].cluster < CLUSTERS);
		CHECK(!is_seen[touched[i].cluster]);
		is_seen[touched[i].cluster] = true;
	}
	lr_record_close(&record);
}

/* Reserved, not had: recording a terabyte costs what was touched of it. */
static void costs_what_was_touched(void)
{
	struct lr_record record;
	struct lr_touched touched;
	struct rusage before, after;

	getrusage(RUSAGE_SELF, &before);
	CHECK_EQ(lr_record_open(&record, 1ull << 28), LR_OK);
	lr_record_note(&record, (1ull << 28) - 1);
	CHECK_EQ(lr_record_get(&record, 0, &touched, 1), 1);
	CHECK_EQ(touched.cluster, (1ull << 28) - 1);
	getrusage(RUSAGE_SELF, &after);
	CHECK(after.ru_minflt - before.ru_minflt < 64);
	lr_record_close(&record);
}

struct setting {
	struct image image;
	lr_image *opened;
	lr_session *session;
	uint8_t *memory;
};

static void set_up(struct setting *set, uint32_t record)
{
	struct lr_session_options options = {.privilege = LR_PRIVILEGE_AUTO, .record = record};
	struct lr_problem problem;
	void *memory;
	int code;

	memset(set, 0, sizeof(*set));
	image_make(&set->image, 4096, 65536, 4 << 20, "dddddddddddddddzzzzzzzzzzzzzzzzz");
	image_publish(&set->image);
	CHECK_EQ(lr_image_open(set->image.path, &set->opened, NULL), LR_OK);
	code = lr_session_open(set->opened, &options, &set->session, &problem);
	if (code == LR_ERR_PERMISSION || code == LR_ERR_UNSUPPORTED)
		SKIP("no userfaultfd here: %s", strerror(problem.os_error));
	CHECK_EQ(code, LR_OK);
	CHECK_EQ(lr_session_map(set->session, 0, &memory, NULL), LR_OK);
	set->memory = memory;
}

static void tear_down(struct setting *set)
{
	lr_session_close(set->session);
	lr_image_close(set->opened);
	image_fini(&set->image);
}

static void touch(struct setting *set, uint64_t offset)
{
	*(volatile uint8_t *)(set->memory + offset);
}

/* Clusters of zeros too: a fault is a fault. */
static void a_session_notes_what_is_touched(void)
{
	static const uint64_t clusters[] = {60, 2, 3, 31};
	struct lr_touched touched[8];
	struct setting set;

	set_up(&set, 1);
	for (int i = 0; i < 4; i++)
		touch(&set, clusters[i] * 65536 + 4096);
	touch(&set, 2 * 65536);
	touch(&set, 60 * 65536 + 65535);
	CHECK_EQ(lr_session_get_touched(set.session, 0, touched, 8), 4);
	for (int i = 0; i < 4; i++)
		CHECK_EQ(touched[i].cluster, clusters[i]);
	tear_down(&set);
}

/* Neither what is loaded ahead, nor what its owner gave up. */
static void a_session_notes_nothing_else(void)
{
	struct lr_touched touched[8];
	struct setting set;
	uint64_t done;

	set_up(&set, 1);
	CHECK_EQ(lr_session_populate(set.session, 0, 0, 65536, -1, &done, NULL), LR_OK);
	touch(&set, 0);
	CHECK_EQ(madvise(set.memory + 65536, 65536, MADV_DONTNEED), 0);
	touch(&set, 65536);
	CHECK_EQ(lr_session_get_touched(set.session, 0, touched, 8), 0);
	touch(&set, 2 * 65536);
	CHECK_EQ(lr_session_get_touched(set.session, 0, touched, 8), 1);
	CHECK_EQ(touched[0].cluster, 2);
	tear_down(&set);
}

static void a_session_that_was_not_asked_notes_nothing(void)
{
	struct lr_touched touched;
	struct setting set;

	set_up(&set, 0);
	touch(&set, 0);
	CHECK_EQ(lr_session_get_touched(set.session, 0, &touched, 1), 0);
	tear_down(&set);
}

static const struct check_case cases[] = {
	CHECK_CASE(keeps_each_once_in_order),
	CHECK_CASE(notes_nothing_unless_it_is_open),
	CHECK_CASE(takes_notes_from_many_threads),
	CHECK_CASE(costs_what_was_touched),
	CHECK_CASE(a_session_notes_what_is_touched),
	CHECK_CASE(a_session_notes_nothing_else),
	CHECK_CASE(a_session_that_was_not_asked_notes_nothing),
};

CHECK_MAIN(cases)
