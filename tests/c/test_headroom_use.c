#include "check.h"

#include "cgroup.h"
#include "headroom_tree.h"

#include <dirent.h>
#include <malloc.h>

/* ---- Whether some bytes more are allowed ----------------------------------------------- */

static void keeps_a_margin(void)
{
	CHECK_EQ(lr_headroom_margin(0), 16 * MIB);
	CHECK_EQ(lr_headroom_margin(256 * MIB), 16 * MIB);
	CHECK_EQ(lr_headroom_margin(512 * MIB), 32 * MIB);
	CHECK_EQ(lr_headroom_margin(1024 * GIB), 1 * GIB);

	make_tree();
	put_v2("/app");
	put_v2_level("/sys/fs/cgroup/app", 80 * MIB, 0);
	struct lr_headroom headroom = open_tree();
	CHECK(lr_headroom_allows(&headroom, UINT64_MAX));
	put_number("/sys/fs/cgroup/app", "memory.max", 128 * MIB);
	CHECK(lr_headroom_allows(&headroom, 32 * MIB));
	CHECK(!lr_headroom_allows(&headroom, 32 * MIB + 1));
	CHECK(!lr_headroom_allows(&headroom, UINT64_MAX));
	/* What can be taken back is asked for where it matters. */
	put("/sys/fs/cgroup/app/memory.stat", "inactive_file %ju\n", (uintmax_t)(10 * MIB));
	CHECK(lr_headroom_allows(&headroom, 42 * MIB));
	CHECK(!lr_headroom_allows(&headroom, 42 * MIB + 1));
	put_number("/sys/fs/cgroup/app", "memory.high", 127 * MIB);
	CHECK(lr_headroom_allows(&headroom, 41 * MIB));
	CHECK(!lr_headroom_allows(&headroom, 41 * MIB + 1));
	lr_headroom_close(&headroom);
	remove_tree();
}

static void keeps_the_machines_margin(void)
{
	make_tree();
	put_machine(8 * GIB, 600 * MIB);
	struct lr_headroom headroom = open_tree();
	CHECK(lr_headroom_allows(&headroom, 88 * MIB));
	CHECK(!lr_headroom_allows(&headroom, 88 * MIB + 1));
	put_machine(8 * GIB, 500 * MIB);
	CHECK(!lr_headroom_allows(&headroom, 0));
	lr_headroom_close(&headroom);
	remove_tree();
}

/* ---- Descriptors and memory ------------------------------------------------------------ */

static int count_descriptors(int *ret_inherited)
{
	DIR *folder = opendir("/proc/self/fd");
	struct dirent *entry;
	int count = 0;

	CHECK(folder != NULL);
	*ret_inherited = 0;
	while ((entry = readdir(folder))) {
		int fd = atoi(entry->d_name);

		if (entry->d_name[0] == '.' || fd == dirfd(folder))
			continue;
		count++;
		if (fd > 2 && !(fcntl(fd, F_GETFD) & FD_CLOEXEC))
			++*ret_inherited;
	}
	closedir(folder);
	return count;
}

static void closes_what_it_opens_and_passes_nothing_on(void)
{
	int inherited, inherited_before;
	int before = count_descriptors(&inherited_before);
	struct lr_headroom headroom;

	CHECK_EQ(lr_headroom_open(&headroom, "/"), LR_OK);
	CHECK(count_descriptors(&inherited) > before);
	CHECK_EQ(inherited, inherited_before);
	lr_headroom_close(&headroom);
	CHECK_EQ(count_descriptors(&inherited), before);
	lr_headroom_close(&headroom);
	CHECK_EQ(count_descriptors(&inherited), before);
	CHECK_EQ(lr_headroom_get(&headroom), UINT64_MAX);
}

static void says_when_descriptors_ran_out(void)
{
	/* The limit is on their numbers, not on how many there are: no gaps. */
	for (int descriptor = 3; descriptor < 1024; descriptor++)
		close(descriptor);

	int inherited, before = count_descriptors(&inherited), spare, failures = 0;
	struct rlimit all, few;
	struct lr_headroom headroom;

	make_tree();
	put_v2("/outer/app");
	put_v2_level("/sys/fs/cgroup/outer", 1, 0);
	put_v2_level("/sys/fs/cgroup/outer/app", 1, 0);
	put_machine(GIB, MIB);
	CHECK_CALL(getrlimit(RLIMIT_NOFILE, &all));
	for (spare = 0;; spare++) {
		few = all;
		few.rlim_cur = (rlim_t)(before + spare);
		CHECK_CALL(setrlimit(RLIMIT_NOFILE, &few));
		int code = lr_headroom_open(&headroom, tree);
		CHECK_CALL(setrlimit(RLIMIT_NOFILE, &all));
		if (code == LR_OK)
			break;
		failures++;
		CHECK_EQ(code, LR_ERR_LIMIT);
		CHECK_EQ(count_descriptors(&inherited), before);
	}
	/* Eight are kept, one reads what is read once, and one learns that the root has none. */
	CHECK_EQ(failures, 10);
	CHECK_EQ(lr_headroom_get(&headroom), MIB);
	lr_headroom_close(&headroom);
	remove_tree();
}

static void asks_without_memory_of_its_own(void)
{
	struct lr_headroom headroom;

	CHECK_EQ(lr_headroom_open(&headroom, "/"), LR_OK);
	struct mallinfo2 before = mallinfo2();
	for (int i = 0; i < 1000; i++) {
		lr_headroom_get(&headroom);
		lr_headroom_allows(&headroom, MIB);
	}
	struct mallinfo2 after = mallinfo2();
	CHECK_EQ(after.uordblks, before.uordblks);
	CHECK_EQ(after.arena, before.arena);
	lr_headroom_close(&headroom);
}

/* ---- This machine ---------------------------------------------------------------------- */

static void agrees_with_this_machine(void)
{
	struct lr_headroom headroom;
	char line[128];
	uintmax_t kib = 0;
	FILE *file = fopen("/proc/meminfo", "re");

	CHECK(file != NULL);
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, "MemAvailable: %ju", &kib) == 1)
			break;
	fclose(file);
	CHECK(kib > 0);
	CHECK_EQ(lr_headroom_open(&headroom, "/"), LR_OK);
	uint64_t room = lr_headroom_get(&headroom);
	CHECK(room > 0);
	CHECK(room < kib * 1024 + 4 * GIB); /* others let go of memory meanwhile */
	lr_headroom_close(&headroom);
}

static uint64_t distance(uint64_t a, uint64_t b)
{
	return a > b ? a - b : b - a;
}

static void measure_in_cgroup(const struct cgroup *cgroup)
{
	struct lr_headroom headroom;

	cgroup_enter(cgroup, 1);
	CHECK_EQ(lr_headroom_open(&headroom, "/"), LR_OK);
	uint64_t before = lr_headroom_get(&headroom);
	CHECK(before > 50 * MIB && before <= 64 * MIB);
	CHECK(lr_headroom_allows(&headroom, 32 * MIB));
	uint8_t *memory =
		mmap(NULL, 40 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(memory != MAP_FAILED);
	memset(memory, 1, 40 * MIB);
	/* Each processor takes some in advance. */
	CHECK(distance(before - lr_headroom_get(&headroom), 40 * MIB) < 4 * MIB);
	CHECK(!lr_headroom_allows(&headroom, 12 * MIB));
	munmap(memory, 40 * MIB);
	CHECK(distance(before, lr_headroom_get(&headroom)) < 4 * MIB);
	lr_headroom_close(&headroom);
}

static void measures_in_a_real_cgroup(void)
{
	struct cgroup cgroup;
	int status;

#if CHECK_SANITIZER_FACTOR != 1
	SKIP("a sanitizer's own memory counts against the limit");
#endif
	cgroup_make(&cgroup, 64 * MIB);
	pid_t pid = fork();
	if (pid == 0) {
		measure_in_cgroup(&cgroup);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	cgroup_remove(&cgroup);
	CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static const struct check_case cases[] = {
	CHECK_CASE(keeps_a_margin),
	CHECK_CASE(keeps_the_machines_margin),
	CHECK_CASE(closes_what_it_opens_and_passes_nothing_on),
	CHECK_CASE(says_when_descriptors_ran_out),
	CHECK_CASE(asks_without_memory_of_its_own),
	CHECK_CASE(agrees_with_this_machine),
	CHECK_CASE(measures_in_a_real_cgroup),
};
CHECK_MAIN(cases)
