/*
 * Loads that find no memory: a cgroup at its limit, in which nobody may be killed, so that
 * UFFDIO_COPY gives ENOMEM. They wait, and hold nothing up that gives memory back.
 */
#include "check.h"

#include <pthread.h>
#include <sched.h>
#include <stdbool.h>

#include "cgroup.h"
#include "image_builder.h"
#include "session.h"

#define PAGE      4096ul
#define CLUSTER   65536ul
#define MIB       (1ul << 20)
#define LIMIT     (24 * MIB)
#define REGION    (64 * MIB)
#define PAGES     (REGION / PAGE)
#define STALLS    16
#define SETTLE_MS 500

enum seen { NOTHING = 0, RIGHT, ZERO, WRONG };

static struct image image;
static struct cgroup cgroup;
static lr_session *session;
static uint8_t *memory, *zeros, *spare;

static uint8_t seen[PAGES];
static atomic_long next_page; /* all before it were read */

/* Its own pages are there before the limit is reached: it faults in nothing but lazy memory. */
static void *read_all(void *unused)
{
	(void)unused;
	for (unsigned long page = 0; page < PAGES; page++) {
		const uint64_t *got = (const uint64_t *)(memory + page * PAGE);
		uint64_t expected, first = *(const volatile uint64_t *)got;

		memcpy(&expected, image.regions[0].bytes + page * PAGE, sizeof(expected));
		seen[page] = first == expected && got[511] != 0 ? RIGHT : first == 0 ? ZERO : WRONG;
		atomic_store(&next_page, (long)page + 1);
	}
	return NULL;
}

static bool is_at_limit(void)
{
	return cgroup_used(&cgroup) + MIB > LIMIT;
}

/* The page that the reader waits for since a while, at the limit, or PAGES. */
static unsigned long wait_for_stall(void)
{
	long last = -1;

	for (int still = 0; still < SETTLE_MS / 10; still++) {
		long now = atomic_load(&next_page);
		if (now == (long)PAGES)
			break;
		if (now != last || !is_at_limit())
			still = 0;
		last = now;
		usleep(10 * 1000);
	}
	return (unsigned long)atomic_load(&next_page);
}

static void wait_for_page(unsigned long page)
{
	while ((unsigned long)atomic_load(&next_page) < page)
		usleep(10 * 1000);
}

static void give_back(unsigned long from_page, unsigned long to_page)
{
	CHECK(from_page <= to_page);
	/* Returns when the pager has heard of it, where it asked to. */
	CHECK_CALL(madvise(memory + from_page * PAGE, (to_page - from_page) * PAGE, MADV_DONTNEED));
}

/* Programs and libraries stay in memory. At the limit the kernel takes back what it can, and who
 * has to read a page of a program's again waits there, with whatever lock he holds. */
static void keep_programs(void)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[600];

	CHECK(maps);
	while (fgets(line, sizeof(line), maps)) {
		unsigned long start, end;

		if ((strstr(line, " /") || strstr(line, "[stack]")) && !strstr(line, "memfd:")
		    && !strstr(line, " ---") && sscanf(line, "%lx-%lx", &start, &end) == 2)
			mlock((void *)start, end - start); /* as far as that is allowed */
	}
	fclose(maps);
}

/* Each processor may have some pages in advance; nobody has them for pages of his own. */
static void use_up_what_is_left(void)
{
	cpu_set_t allowed, one;
	size_t at = 0;

	CHECK_CALL(sched_getaffinity(0, sizeof(allowed), &allowed));
	for (size_t i = 0; i < CPU_SETSIZE; i++) {
		CPU_ZERO(&one);
		CPU_SET(i, &one);
		if (!CPU_ISSET(i, &allowed) || sched_setaffinity(0, sizeof(one), &one) < 0)
			continue;
		/* By a system call: that fails, where a touch would wait. */
		while (at < LIMIT && madvise(spare + at, PAGE, MADV_POPULATE_WRITE) == 0)
			at += PAGE;
	}
	CHECK_CALL(sched_setaffinity(0, sizeof(allowed), &allowed));
}

/* Of which some can be given back when nothing is left. */
static uint8_t *spare_memory(void)
{
	uint8_t *mapped = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	CHECK(mapped != MAP_FAILED);
	return mapped;
}

static lr_image *open_image(const char *path)
{
	lr_image *opened;

	CHECK_EQ(lr_image_open(path, &opened, NULL), LR_OK);
	return opened;
}

static void open_session(const lr_image *opened)
{
	struct lr_session_options options = {.privilege = LR_PRIVILEGE_AUTO};
	struct lr_problem problem;
	void *mapped;
	int code = lr_session_open(opened, &options, &session, &problem);

	if (code == LR_ERR_PERMISSION || code == LR_ERR_UNSUPPORTED)
		SKIP("no userfaultfd here: %s", strerror(problem.os_error));
	CHECK_EQ(code, LR_OK);
	CHECK_EQ(lr_session_map(session, 0, &mapped, NULL), LR_OK);
	memory = mapped;
	CHECK_EQ(lr_session_map(session, 1, &mapped, NULL), LR_OK);
	zeros = mapped;
	spare = mmap(NULL, LIMIT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(spare != MAP_FAILED);
	keep_programs();
}

static pthread_t start_reader(void)
{
	pthread_t reader;

	/* What is used at the limit is used once before: functions are bound and pages are there.
	 */
	memset(seen, NOTHING, sizeof(seen));
	CHECK_EQ(zeros[0], 0);
	CHECK_EQ(zeros[CLUSTER * (STALLS + 1) - 1], 0);
	CHECK_CALL(madvise(zeros, PAGE, MADV_DONTNEED));
	CHECK(cgroup_used(&cgroup) < LIMIT);
	usleep(1000);
	CHECK_EQ(pthread_create(&reader, NULL, read_all, NULL), 0);
	return reader;
}

/* Nothing was taken for damaged: without waiting for anything to be loaded. */
static void check_no_errors(void)
{
	struct lr_load_error error;

	if (lr_session_get_errors(session, 0, &error, 1) > 0)
		CHECK_FAIL("cluster %ju was given up: %s (%s)", (uintmax_t)error.cluster,
			   lr_strerror(error.code), strerror(error.os_error));
}

static void check_all_right(pthread_t reader)
{
	CHECK_EQ(pthread_join(reader, NULL), 0);
	check_no_errors();
	for (unsigned long page = 0; page < PAGES; page++)
		if (seen[page] != RIGHT)
			CHECK_FAIL("page %lu of %lu was read as %s", page, PAGES,
				   seen[page] == ZERO ? "zeros" : "something else");
}

static void make_image(const char *pattern)
{
	image_init(&image, PAGE, CLUSTER);
	image_add(&image, "data", REGION, pattern);
	image_add(&image, "zeros", CLUSTER * (STALLS + 1), "z");
	image_build(&image);
	image_publish(&image);
}

/* Run in a child that lives in the cgroup. */
static void run_limited(void (*run)(const char *), const char *path)
{
	int status;

#if CHECK_SANITIZER_FACTOR != 1
	SKIP("a sanitizer's own memory counts against the limit, and who needs it waits");
#endif
	cgroup_make(&cgroup, LIMIT);
	pid_t pid = fork();
	if (pid == 0) {
		cgroup_enter(&cgroup, 0);
		run(path);
		lr_session_close(session);
		_exit(0);
	}
	/* A stuck one is killed with the case; then its cgroup stays. */
	waitpid(pid, &status, 0);
	cgroup_remove(&cgroup);
	CHECK(!WIFSIGNALED(status) || !"a signal ended it");
	if (WEXITSTATUS(status) != 0)
		_exit(WEXITSTATUS(status));
}

/* ---- The cases ------------------------------------------------------------------------- */

static void read_and_give_back(const char *path)
{
	lr_image *opened = open_image(path);
	unsigned long stalls = 0, given = 0, page;

	open_session(opened);
	pthread_t reader = start_reader();
	while ((page = wait_for_stall()) < PAGES) {
		CHECK(++stalls <= STALLS);
		/* What needs no memory comes meanwhile. */
		CHECK_EQ(zeros[CLUSTER * stalls], 0);
		give_back(given, page - CLUSTER / PAGE);
		given = page - CLUSTER / PAGE;
	}
	CHECK(stalls >= 1);
	check_all_right(reader);
}

static void waits_until_the_owner_gives_memory_back(void)
{
	make_image("d");
	run_limited(read_and_give_back, image.path);
}

/* The same with an image that no page cache has yet, in a file of a real disk. */
static void run_cold(void (*run)(const char *))
{
	char path[] = "/tmp/lr-cold-XXXXXX";
	int fd = (int)CHECK_CALL(mkstemp(path));

	make_image("r");
	for (uint64_t at = 0; at < image.bytes;)
		at += (uint64_t)CHECK_CALL(
			pwrite(fd, image.file + at, image.bytes - at, (off_t)at));
	CHECK_CALL(fsync(fd));
	CHECK_EQ(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
	close(fd);
	pid_t pid = fork();
	if (pid == 0) {
		run_limited(run, path);
		_exit(0);
	}
	int status = check_wait(pid);
	unlink(path);
	CHECK(WIFEXITED(status));
	if (WEXITSTATUS(status) != 0)
		_exit(WEXITSTATUS(status));
}

/* Reading the file needs memory too then: an ENOMEM of pread() is no damage. */
static void waits_also_to_read_the_file(void)
{
	run_cold(read_and_give_back);
}

static void read_and_raise(const char *path)
{
	lr_image *opened = open_image(path);

	open_session(opened);
	pthread_t reader = start_reader();
	CHECK(wait_for_stall() < PAGES);
	cgroup_set_limit(&cgroup, LIMIT + REGION + 16 * MIB);
	wait_for_page(PAGES);
	check_all_right(reader);
}

static void goes_on_when_the_limit_is_raised(void)
{
	make_image("d");
	run_limited(read_and_raise, image.path);
}

static void read_and_give_up(const char *path)
{
	lr_image *opened = open_image(path);
	unsigned long page, end;

	open_session(opened);
	pthread_t reader = start_reader();
	CHECK((page = wait_for_stall()) < PAGES - CLUSTER / PAGE);
	end = page + CLUSTER / PAGE;
	give_back(page, end);
	/* Nothing is left to be loaded there, and zeros need no memory. */
	wait_for_page(end);
	for (unsigned long given = page; given < end; given++)
		CHECK_EQ(seen[given], ZERO);
	cgroup_set_limit(&cgroup, LIMIT + REGION + 16 * MIB);
	wait_for_page(PAGES);
	memset(seen + page, RIGHT, end - page);
	check_all_right(reader);
}

static void ends_with_zeros_where_its_page_is_given_up(void)
{
	make_image("d");
	run_limited(read_and_give_up, image.path);
}

/* Waits for a page's number other than 0, and touches it. */
static void *touch_when_told(void *unused)
{
	long page;

	while ((page = atomic_load(&next_page)) == 0)
		usleep(10 * 1000);
	(void)*(const volatile uint8_t *)(memory + (uint64_t)page * PAGE);
	return unused;
}

static void populate_and_give_back(const char *path)
{
	lr_image *opened = open_image(path);
	uint64_t done = 0, before;
	pthread_t toucher;
	int code;

	open_session(opened);
	CHECK_EQ(pthread_create(&toucher, NULL, touch_when_told, NULL), 0);
	/* A slow disk may take longer than that. */
	do {
		before = done;
		code = lr_session_populate(session, 0, 0, REGION, 3000000000, &done, NULL);
	} while (code == LR_ERR_TIMEOUT && done > before);
	CHECK(code == LR_ERR_NOMEM || code == LR_ERR_TIMEOUT);
	CHECK(done > LIMIT / 2 && done < LIMIT);
	check_no_errors();
	use_up_what_is_left();
	/* The pager uses buffers of its own for the first time now. */
	atomic_store(&next_page, (long)(done / PAGE));
	usleep(SETTLE_MS * 1000);
	check_no_errors();
	CHECK_MEM(memory, image.regions[0].bytes, done);
	give_back(0, done / PAGE);
	CHECK_EQ(pthread_join(toucher, NULL), 0);
	uint64_t more = 0;
	CHECK_EQ(lr_session_populate(session, 0, done, LIMIT / 2, -1, &more, NULL), LR_OK);
	check_no_errors();
	CHECK_MEM(memory + done, image.regions[0].bytes + done, LIMIT / 2);
}

static void populate_stops_there_and_can_be_called_again(void)
{
	make_image("d");
	run_limited(populate_and_give_back, image.path);
}

static void populate_that_cannot_read_fences_nothing(void)
{
	run_cold(populate_and_give_back);
}

/* Has the pager look in the first leaf of the index, but decode nothing; then uses all up with what
 * lies behind that. */
static void decode_first_at_the_limit(const char *path)
{
	lr_image *opened = open_image(path);
	uint64_t leaf = 256 * CLUSTER, done = 0;
	pthread_t toucher;
	int code;

	open_session(opened);
	CHECK_EQ(*(const volatile uint8_t *)memory, 0);
	CHECK_EQ(pthread_create(&toucher, NULL, touch_when_told, NULL), 0);
	code = lr_session_populate(session, 0, leaf, REGION - leaf, 3000000000, &done, NULL);
	CHECK(code == LR_ERR_NOMEM || code == LR_ERR_TIMEOUT);
	use_up_what_is_left();
	atomic_store(&next_page, CLUSTER / PAGE);
	usleep(SETTLE_MS * 1000);
	give_back(leaf / PAGE, (leaf + done) / PAGE);
	CHECK_EQ(pthread_join(toucher, NULL), 0);
	check_no_errors();
	CHECK_MEM(memory, image.regions[0].bytes, 2 * CLUSTER);
}

static void decodes_for_the_first_time_at_the_limit(void)
{
	make_image("zzzzzzzzzzzzzzzzdddddddddddddddddddddddddddddddddddddddddddddddd");
	run_limited(decode_first_at_the_limit, image.path);
}

static unsigned long left_pages;

/* Zeros need no memory, but a thread does: one that the pager starts for who faults again and
 * again must not be waited for. */
static void fault_often_at_the_limit(const char *path)
{
	lr_image *opened = open_image(path);
	uint8_t *kept = spare_memory();
	struct lr_near *near;
	uint64_t done = 0;
	int code;

	open_session(opened);
	near = &session->pager.near;
	atomic_store(&near->ignores_load, true);
	CHECK_EQ(zeros[0], 0);
	CHECK_EQ(zeros[CLUSTER * (STALLS + 1) - 1], 0);
	code = lr_session_populate(session, 0, 0, REGION, 3000000000, &done, NULL);
	CHECK(code == LR_ERR_NOMEM || code == LR_ERR_TIMEOUT);
	use_up_what_is_left();
	CHECK_CALL(madvise(kept, left_pages * PAGE, MADV_DONTNEED));
	for (uint64_t i = 1; i < STALLS; i++)
		CHECK_EQ(zeros[CLUSTER * i], 0);
	CHECK(!near->is_running);
	/* And is, when there is memory again. */
	cgroup_set_limit(&cgroup, LIMIT + REGION + 16 * MIB);
	for (uint64_t at = done + MIB; at < REGION && near->is_possible && !near->is_running;
	     at += CLUSTER) {
		CHECK_MEM(memory + at, image.regions[0].bytes + at, PAGE);
		usleep(1000);
	}
	CHECK(near->is_running || sysconf(_SC_NPROCESSORS_ONLN) < 2);
}

/* With nothing left it could not even be begun. */
static void starts_no_thread_at_the_limit(void)
{
	make_image("d");
	for (left_pages = 1; left_pages < 16; left_pages += left_pages < 3 ? 1 : 9)
		run_limited(fault_often_at_the_limit, image.path);
}

static void suspend_while_waiting(const char *path)
{
	lr_image *opened = open_image(path);

	open_session(opened);
	pthread_t reader = start_reader();
	CHECK(wait_for_stall() < PAGES);
	CHECK_EQ(lr_session_suspend(session, 0), LR_OK);
	CHECK_EQ(lr_session_resume(session, 0), LR_OK);
	lr_session_get_stats(session, &(struct lr_session_stats){0});
	cgroup_set_limit(&cgroup, LIMIT + REGION + 16 * MIB);
	wait_for_page(PAGES);
	check_all_right(reader);
}

static void holds_up_neither_suspend_nor_resume(void)
{
	make_image("d");
	run_limited(suspend_while_waiting, image.path);
}

static const struct check_case cases[] = {
	CHECK_CASE_LIMIT(waits_until_the_owner_gives_memory_back, 60),
	CHECK_CASE_LIMIT(waits_also_to_read_the_file, 60),
	CHECK_CASE_LIMIT(goes_on_when_the_limit_is_raised, 60),
	CHECK_CASE_LIMIT(ends_with_zeros_where_its_page_is_given_up, 60),
	CHECK_CASE_LIMIT(populate_stops_there_and_can_be_called_again, 60),
	CHECK_CASE_LIMIT(populate_that_cannot_read_fences_nothing, 60),
	CHECK_CASE_LIMIT(decodes_for_the_first_time_at_the_limit, 20),
	CHECK_CASE_LIMIT(starts_no_thread_at_the_limit, 60),
	CHECK_CASE_LIMIT(holds_up_neither_suspend_nor_resume, 60),
};
CHECK_MAIN(cases)
