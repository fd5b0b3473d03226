/*
 * The background fill: in what order it loads, how it ends, and what becomes of regions that are
 * complete.
 */
#include "fill_setting.h"
#include "jobs.h"

/* ---- What is complete ---- */

/* It takes the threads of a child's parent for the child's, and for leaked. */
#if defined(__SANITIZE_THREAD__)
#define NEEDS_CHILDREN() SKIP("ThreadSanitizer knows no children of many threads")
#else
#define NEEDS_CHILDREN() ((void)0)
#endif

static void gives_back_what_is_complete(void)
{
	pid_t child;

	NEEDS_CHILDREN();
	make_image("dddrzzhd");
	open_at(0);
	need_giving_back();
	CHECK(is_registered(memory));
	fill(NULL);
	CHECK(!is_registered(memory) && !is_registered(memory + LENGTH - PAGE));
	CHECK_CALL(madvise(memory, CLUSTER, MADV_DONTNEED));
	memset(image.regions[0].bytes, 0, CLUSTER);
	check_all();
	CHECK_EQ(faults(), 0);
	/* Children have it like any memory, by whatever way they are made. */
	child = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, 0ul);
	CHECK(child >= 0);
	if (child == 0)
		_exit(memcmp(memory, image.regions[0].bytes, LENGTH) != 0);
	CHECK_CHILD(child);
	tear_down();
}

static void knows_what_it_gave_back(void)
{
	struct lr_problem problem;
	uint64_t done;

	make_image("d");
	open_at(0);
	fill(NULL);
	CHECK_EQ(lr_session_populate(session, 0, 0, LENGTH, -1, &done, &problem), LR_OK);
	CHECK_EQ(done, LENGTH);
	CHECK_EQ(lr_session_suspend(session, 0), LR_OK);
	CHECK_EQ(lr_session_resume(session, 0), LR_OK);
	CHECK_EQ(lr_session_suspend(session, 0), LR_OK);
	CHECK_EQ(lr_session_detach(session, 0), LR_OK);
	CHECK_EQ(lr_session_detach(session, 0), LR_ERR_CLOSED);
	check_all();
	tear_down();
}

/* Spans of zeros take no pages and no page tables, and are there all the same. */
static void leaves_zeros_to_the_kernel(void)
{
	struct lr_session_stats stats;

	image_init(&image, PAGE, CLUSTER);
	image_add(&image, "memory", LENGTH, "z");
	image_build(&image);
	image_publish(&image);
	CHECK_EQ(lr_image_open(image.path, &opened, NULL), LR_OK);
	open_at(3 * PAGE);
	need_giving_back();
	CHECK_EQ(memory[HUGE], 0); /* on demand, as before */
	fill(NULL);
	lr_session_get_stats(session, &stats);
	CHECK(stats.pages_zeroed <= CLUSTER / PAGE);
	CHECK(!is_registered(memory));
	for (uint64_t i = 0; i < LENGTH; i += PAGE)
		CHECK_EQ(memory[i], 0);
	CHECK_EQ(faults(), 1);
	tear_down();
}

/* Where something could not be loaded, the fence stays, and what else there is too. */
static void keeps_what_is_not_complete(void)
{
	uint8_t byte;

	NEEDS_CHILDREN();
	make_image("d");
	byte = image.file[image_get(image.file + image_entry_offset(&image, 40), 8) + 100];
	byte ^= 1;
	CHECK_EQ(pwrite(image.fd, &byte, 1,
			(off_t)image_get(image.file + image_entry_offset(&image, 40), 8) + 100),
		 1);
	open_at(0);
	fill(NULL);
	CHECK(is_registered(memory));
	CHECK_MEM(memory, image.regions[0].bytes, 40 * CLUSTER);
	CHECK_MEM(memory + 41 * CLUSTER, image.regions[0].bytes + 41 * CLUSTER,
		  LENGTH - 41 * CLUSTER);
	if (session->target.uffd.features & LR_UFFD_FEATURE_POISON)
		CHECK_SIGNAL(SIGBUS, (void)((volatile uint8_t *)memory)[40 * CLUSTER];);
	else
		CHECK_SIGNAL(SIGSEGV, (void)((volatile uint8_t *)memory)[40 * CLUSTER];);
	tear_down();
}

/* Whatever the fill believes. */
static void never_gives_back_what_is_missing(void)
{
	struct lr_chunks chunks;
	struct lr_chunk chunk;
	struct lr_job job = {.act = lr_session_release, .context = &chunks};

	make_image("d");
	open_at(0);
	CHECK_EQ(lr_chunks_open(&chunks, &session->target), LR_OK);
	while (lr_chunks_take(&chunks, 0, &chunk))
		lr_chunks_put(&chunks, &chunk, LR_CHUNK_DONE);
	job.range = &session->target.ranges[0];
	CHECK(lr_chunks_complete(&chunks, job.range));
	lr_pager_submit(&session->pager, &job);
	CHECK(lr_job_wait(&job) < 0);
	CHECK(is_registered(memory));
	lr_chunks_close(&chunks);
	check_all();
	tear_down();
}

/* ---- Moved in the moment in which it is given back ---- */

struct mover {
	pthread_t thread;
	struct lr_range *range;
	uint8_t *first; /* moved there and back; `last` after it, so that giving back fails */
	uint8_t *last;
	uint8_t *others[2];
	unsigned delay;
	_Atomic bool is_over;
};

static uint8_t *move_page(uint8_t *from, uint8_t *to)
{
	CHECK(mremap(from, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
	return to;
}

static void *move_when_it_is_given_back(void *argument)
{
	struct mover *mover = argument;
	uint8_t *first = mover->first, *last = mover->last;

	while (lr_range_state(mover->range) != LR_RANGE_PLAIN)
		if (atomic_load_explicit(&mover->is_over, memory_order_relaxed))
			return NULL;
	for (volatile unsigned i = 0; i < mover->delay; i = i + 1)
		continue;
	mover->first = move_page(first, mover->others[0]);
	mover->last = move_page(last, mover->others[1]);
	mover->others[0] = first;
	mover->others[1] = last;
	return NULL;
}

/* Whether the first page was moved without a message, and the range stays as it was. */
static bool gives_back_in_vain(struct mover *mover, struct lr_chunks *chunks)
{
	struct lr_job job = {.act = lr_session_release, .context = chunks, .range = mover->range};
	struct lr_piece piece;
	int code;

	atomic_store(&mover->is_over, false);
	CHECK_EQ(pthread_create(&mover->thread, NULL, move_when_it_is_given_back, mover), 0);
	usleep(1000);
	lr_pager_submit(&session->pager, &job);
	code = lr_job_wait(&job);
	atomic_store(&mover->is_over, true);
	CHECK_EQ(pthread_join(mover->thread, NULL), 0);
	CHECK(code == LR_OK || code == LR_ERR_BUSY);
	/* (What was moved last tells that the message of the first would have been read.) */
	return code == LR_ERR_BUSY
	       && !lr_target_find(&session->target, (uintptr_t)mover->first, &piece);
}

/* What lies where some of it was is somebody else's, whatever is still believed of it. */
static void leaves_alone_what_came_where_it_was(void)
{
	struct lr_piece piece;
	uint8_t *room = mmap(NULL, 514 * PAGE, PROT_NONE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	bool is_done = false;

	CHECK(room != MAP_FAILED);
	for (unsigned tries = 0; tries < 300 && !is_done; tries++) {
		struct mover mover = {.delay = tries * 37 % 4000};
		struct lr_chunks chunks;
		struct lr_chunk chunk;

		make_image("z");
		open_at(0);
		need_giving_back();
		session->target.uffd.features &= ~LR_UFFD_FEATURE_POISON;
		/* Many pieces: it takes a while. */
		for (uint64_t page = 2; page < 512; page += 2)
			move_page(memory + page * PAGE, room + page * PAGE);
		CHECK_EQ(lr_chunks_open(&chunks, &session->target), LR_OK);
		while (lr_chunks_take(&chunks, 0, &chunk))
			lr_chunks_put(&chunks, &chunk, LR_CHUNK_ZERO);
		mover.range = &session->target.ranges[0];
		mover.first = memory;
		mover.last = memory + LENGTH - PAGE;
		mover.others[0] = room;
		mover.others[1] = room + 512 * PAGE;
		is_done = gives_back_in_vain(&mover, &chunks);
		if (is_done) {
			CHECK(lr_target_find(&session->target, (uintptr_t)mover.others[0], &piece));
			CHECK(mmap(mover.others[0], PAGE, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
			      == mover.others[0]);
			mover.others[0][5] = 'x';
		}
		lr_chunks_close(&chunks);
		lr_session_close(session);
		if (is_done) {
			CHECK_EQ(check_touch(mover.others[0], 1), 0);
			CHECK_EQ(mover.others[0][5], 'x');
			CHECK_EQ(check_touch(mover.first, 0), 0);
			CHECK_EQ(*mover.first, 0);
		}
		CHECK(mmap(room, 514 * PAGE, PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0)
		      == room);
		CHECK_CALL(munmap(memory, LENGTH));
		lr_image_close(opened);
		image_fini(&image);
	}
	if (!is_done)
		SKIP("never was anything moved in just that moment");
}

/* ---- What is decoded, and waits to be put in place ---- */

static void serves_from_what_is_decoded(void)
{
	struct lr_loader *loader;
	struct lr_decoder decoder;
	struct lr_range *range;
	struct lr_stage stage;
	uint64_t bytes = 0;

	make_image("d");
	open_at(0);
	loader = &session->pager.loader;
	range = &session->target.ranges[0];
	CHECK_EQ(lr_decoder_open(&decoder, opened), LR_OK);
	CHECK_EQ(lr_stage_open(&stage, &session->target), LR_OK);
	lr_stage_begin(&stage, range, 0, HUGE, 0);
	CHECK_EQ(lr_decoder_find(&decoder, &range->region, 1, NULL), LR_OK);
	CHECK_EQ(lr_stage_add(&stage, &decoder, NULL), LR_OK);
	CHECK_CALL(madvise(memory + CLUSTER, PAGE, MADV_DONTNEED));
	usleep(1000);
	pthread_mutex_lock(&loader->busy);
	/* What was given up is zeros; what is not there has to be decoded. */
	CHECK(!stage.job.serve(loader, &stage.job, CLUSTER, &bytes));
	CHECK(!stage.job.serve(loader, &stage.job, 0, &bytes));
	CHECK(!stage.job.serve(loader, &stage.job, 2 * CLUSTER, &bytes));
	CHECK_EQ(bytes, 0);
	CHECK(stage.job.serve(loader, &stage.job, CLUSTER + 3 * PAGE, &bytes));
	CHECK_EQ(bytes, CLUSTER - 3 * PAGE);
	pthread_mutex_unlock(&loader->busy);
	memset(image.regions[0].bytes + CLUSTER, 0, PAGE);
	check_all();
	lr_stage_close(&stage);
	lr_decoder_close(&decoder);
	tear_down();
}

/* ---- In what order ---- */

static bool is_there(uint64_t cluster)
{
	return lr_pageset_get(&session->target.clusters, cluster) == LR_STATE_SETTLED;
}

static void loads_the_first_first(void)
{
	const uint64_t wanted[] = {100, 3, 101, 64, 17, 99, 3};
	struct lr_fill_options options = {
		.first = wanted, .first_count = 7, .first_only = 1, .threads = 2};

	make_image("d");
	open_at(0);
	CHECK_EQ(lr_session_wait_first(session, 0), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_session_fill(session, &options), LR_OK);
	CHECK_EQ(lr_session_wait_first(session, -1), LR_OK);
	for (uint64_t i = 0; i < LENGTH / CLUSTER; i++) {
		bool is_wanted = false;

		for (int j = 0; j < 7; j++)
			is_wanted |= wanted[j] == i;
		CHECK_EQ(is_there(i), is_wanted);
	}
	CHECK_EQ(lr_session_wait(session, -1), LR_OK);
	CHECK(is_registered(memory));
	CHECK_EQ(faults(), 0);
	check_all();
	CHECK(faults() > 0);
	CHECK_EQ(lr_session_fill(session, NULL), LR_ERR_BUSY);
	tear_down();
}

static void loads_the_rest_afterwards(void)
{
	const uint64_t wanted[] = {31, 30};
	struct lr_fill_options options = {.first = wanted, .first_count = 2, .threads = 3};

	make_image("dr");
	open_at(0);
	fill(&options);
	CHECK_EQ(lr_session_wait_first(session, 0), LR_OK);
	check_all();
	CHECK_EQ(faults(), 0);
	tear_down();
}

static void refuses_clusters_that_are_not_there(void)
{
	const uint64_t wanted[] = {0, LENGTH / CLUSTER};
	struct lr_fill_options options = {.first = wanted, .first_count = 2};

	make_image("d");
	open_at(0);
	CHECK_EQ(lr_session_fill(session, &options), LR_ERR_ARGUMENT);
	options.first = NULL;
	CHECK_EQ(lr_session_fill(session, &options), LR_ERR_ARGUMENT);
	options.first = wanted;
	options.first_count = 1;
	CHECK_EQ(lr_session_fill(session, &options), LR_OK);
	CHECK_EQ(lr_session_wait(session, -1), LR_OK);
	tear_down();
}

/* ---- Interrupted ---- */

static void ends_when_it_is_closed(void)
{
	for (int i = 0; i < 20; i++) {
		make_image("dr");
		open_at(0);
		CHECK_EQ(lr_session_fill(session, NULL), LR_OK);
		usleep((useconds_t)i * 400);
		tear_down();
	}
}

static void children_get_the_rest_by_themselves(void)
{
	for (int i = 0; i < 8; i++) {
		pid_t child;

		/* The fill's threads are just beginning, and so in malloc. */
		if (CHECK_SANITIZER_FACTOR != 1)
			SKIP("a sanitizer's malloc is not made for fork() amid that of others");
		make_image("dr");
		open_at(0);
		CHECK_EQ(lr_session_fill(session, NULL), LR_OK);
		usleep((useconds_t)i * 500);
		child = fork();
		CHECK(child >= 0);
		if (child == 0) {
			if (lr_session_wait(session, 0) != LR_ERR_ARGUMENT
			    && lr_session_wait(session, 0) != LR_ERR_CLOSED)
				_exit(2);
			_exit(memcmp(memory, image.regions[0].bytes, LENGTH) != 0);
		}
		CHECK_CHILD(child);
		CHECK_EQ(lr_session_wait(session, -1), LR_OK);
		check_all();
		tear_down();
	}
}

static const struct check_case cases[] = {
	CHECK_CASE(gives_back_what_is_complete),
	CHECK_CASE(knows_what_it_gave_back),
	CHECK_CASE(leaves_zeros_to_the_kernel),
	CHECK_CASE(keeps_what_is_not_complete),
	CHECK_CASE(never_gives_back_what_is_missing),
	CHECK_CASE(leaves_alone_what_came_where_it_was),
	CHECK_CASE(serves_from_what_is_decoded),
	CHECK_CASE(loads_the_first_first),
	CHECK_CASE(loads_the_rest_afterwards),
	CHECK_CASE(refuses_clusters_that_are_not_there),
	CHECK_CASE(ends_when_it_is_closed),
	CHECK_CASE(children_get_the_rest_by_themselves),
};
CHECK_MAIN(cases)
