/* Opening where something runs out: a code that says what, nothing left behind, and no crash. */
#include "check.h"

#include <dirent.h>
#include <malloc.h>

#include "image_builder.h"

static struct image image;
static lr_image *opened;

static unsigned count_entries(const char *path)
{
	DIR *folder = opendir(path);
	unsigned count = 0;

	CHECK(folder);
	while (readdir(folder))
		count++;
	closedir(folder);
	return count;
}

static uint64_t mapped_pages(void)
{
	FILE *file = fopen("/proc/self/statm", "r");
	unsigned long pages = 0;

	CHECK(file && fscanf(file, "%lu", &pages) == 1);
	fclose(file);
	return pages;
}

static int try_all(void)
{
	struct lr_session_options options = {.privilege = LR_PRIVILEGE_AUTO, .trace_records = 1024};
	struct lr_problem problem = {0};
	lr_image *again = NULL;
	lr_session *session = NULL;
	void *mapped;
	int code = lr_image_open(image.path, &again, &problem);

	if (code == LR_OK)
		code = lr_session_open(again, &options, &session, &problem);
	if (code == LR_OK)
		code = lr_session_map(session, 0, &mapped, &problem);
	if (code < 0)
		CHECK_EQ(problem.code, code);
	else
		CHECK_EQ(*(uint8_t *)mapped, image.regions[0].bytes[0]);
	lr_session_close(session);
	lr_image_close(again);
	return code;
}

static void set_up(void)
{
	image_make(&image, 4096, 65536, 1000000, "d");
	CHECK_EQ(lr_image_open(image.path, &opened, NULL), LR_OK);
	/* Once without limits: what is made only once is not counted. */
	int code = try_all();

	if (code == LR_ERR_PERMISSION || code == LR_ERR_UNSUPPORTED)
		SKIP("no userfaultfd here: %s", lr_strerror(code));
	CHECK_EQ(code, LR_OK);
}

static void out_of_descriptors(void)
{
	unsigned fails = 0, descriptors;
	int code = LR_ERR_LIMIT;

	set_up();
	descriptors = count_entries("/proc/self/fd");
	for (unsigned limit = 3; code < 0; limit++) {
		struct rlimit old, files;

		CHECK_CALL(getrlimit(RLIMIT_NOFILE, &old));
		files = old;
		files.rlim_cur = limit;
		CHECK_CALL(setrlimit(RLIMIT_NOFILE, &files));
		code = try_all();
		CHECK_CALL(setrlimit(RLIMIT_NOFILE, &old));
		CHECK_EQ(count_entries("/proc/self/fd"), descriptors);
		CHECK(code == LR_OK || code == LR_ERR_LIMIT);
		fails += code < 0;
	}
	/* Image, userfaultfd, eventfd, trace: each could not be had once. */
	CHECK(fails >= 4);
	lr_image_close(opened);
	image_fini(&image);
}

static void out_of_address_space(void)
{
	unsigned fails = 0, descriptors;
	uint64_t pages, before;
	int code = LR_ERR_NOMEM;

#if CHECK_SANITIZER_FACTOR > 1
	SKIP("a sanitizer needs its address space");
#endif
	set_up();
	descriptors = count_entries("/proc/self/fd");
	pages = mapped_pages();
	before = pages;
	for (uint64_t extra = 0; code < 0; extra += 16) {
		struct rlimit old, space;

		CHECK_CALL(getrlimit(RLIMIT_AS, &old));
		space = old;
		space.rlim_cur = (pages + extra) * 4096;
		CHECK_CALL(setrlimit(RLIMIT_AS, &space));
		code = try_all();
		CHECK_CALL(setrlimit(RLIMIT_AS, &old));
		CHECK_EQ(count_entries("/proc/self/fd"), descriptors);
		CHECK(code == LR_OK || code == LR_ERR_NOMEM || code == LR_ERR_LIMIT);
		fails += code < 0;
		CHECK(extra < 100000);
	}
	CHECK(fails >= 4);
	/* malloc may have kept something, but not once for each try. */
	CHECK(mapped_pages() <= before + 256);
	lr_image_close(opened);
	image_fini(&image);
}

static void out_of_threads(void)
{
	struct rlimit old, none;
	unsigned descriptors;

	set_up();
	if (getuid() == 0) {
		/* The limit is not for root; a userfaultfd for one's own code is for everyone. */
		CHECK_CALL(setgid(65534));
		CHECK_CALL(setuid(65534));
		CHECK_CALL(prctl(PR_SET_DUMPABLE, 1)); /* else /proc/self is root's */
	}
	descriptors = count_entries("/proc/self/fd");
	CHECK_CALL(getrlimit(RLIMIT_NPROC, &old));
	none = old;
	none.rlim_cur = 0;
	CHECK_CALL(setrlimit(RLIMIT_NPROC, &none));
	for (int i = 0; i < 50; i++) {
		struct lr_session_options options = {.privilege = LR_PRIVILEGE_AUTO};
		struct lr_problem problem = {0};
		lr_session *session;
		int code = lr_session_open(opened, &options, &session, &problem);

		if (code == LR_ERR_PERMISSION)
			SKIP("no userfaultfd for this user: %s", strerror(problem.os_error));
		CHECK_EQ(code, LR_ERR_LIMIT);
		CHECK_EQ(problem.code, LR_ERR_LIMIT);
	}
	CHECK_EQ(count_entries("/proc/self/fd"), descriptors);
	/* The leak check at exit starts a thread. */
	CHECK_CALL(setrlimit(RLIMIT_NPROC, &old));
	lr_image_close(opened);
	image_fini(&image);
}

/* Open and close many times: nothing is left. */
static void leaves_nothing_behind(void)
{
	unsigned descriptors, threads;
	uint64_t pages;

	set_up();
	descriptors = count_entries("/proc/self/fd");
	threads = count_entries("/proc/self/task");
	pages = mapped_pages();
	for (int i = 0; i < 300; i++)
		CHECK_EQ(try_all(), LR_OK);
	CHECK_EQ(count_entries("/proc/self/fd"), descriptors);
	/* A thread that was joined may stay in /proc for a moment, then as now. */
	while (count_entries("/proc/self/task") > threads)
		usleep(1000);
	if (CHECK_SANITIZER_FACTOR == 1)
		CHECK(mapped_pages() <= pages + 256);
	lr_image_close(opened);
	image_fini(&image);
}

static uint64_t resident_kib(void)
{
	FILE *file = fopen("/proc/self/smaps_rollup", "re");
	unsigned long kib = 0;
	char line[200];

	CHECK(file);
	malloc_trim(0);
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "Rss: %lu kB", &kib) == 1)
			break;
	fclose(file);
	return kib;
}

/* What one session leaves for the next is little, however many different images there were: their
 * index nodes lie at other places of the cache. */
static void keeps_little_of_many_images(void)
{
	uint64_t before = 0, images = 200;

#if CHECK_SANITIZER_FACTOR > 1
	SKIP("a sanitizer keeps memory of its own");
#endif
	for (uint64_t i = 0; i < images; i++) {
		image_make(&image, 4096, 65536, 65536 + 4096 * i, "r");
		int code = try_all();

		if (code == LR_ERR_PERMISSION || code == LR_ERR_UNSUPPORTED)
			SKIP("no userfaultfd here: %s", lr_strerror(code));
		CHECK_EQ(code, LR_OK);
		image_fini(&image);
		if (i == images / 10)
			before = resident_kib();
	}
	CHECK(resident_kib() <= before + 400);
}

static const struct check_case cases[] = {
	CHECK_CASE(out_of_descriptors),
	CHECK_CASE(out_of_address_space),
	CHECK_CASE(out_of_threads),
	CHECK_CASE(leaves_nothing_behind),
	CHECK_CASE(keeps_little_of_many_images),
};
CHECK_MAIN(cases)
