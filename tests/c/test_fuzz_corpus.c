/*
 * The fuzzers' harnesses on all images in fixtures/, without clang: the golden, the broken, and
 * those that fuzzing left. For each: no promise is broken, and it costs less than 100 MiB of memory
 * and a second of processor time.
 *
 * LAZYRESTORE_FIXTURES is the folder.
 */
#include "check.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "hostile.h"

#define MEMORY_MAX (100u << 20)
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define IS_SANITIZED 1
#define CPU_S_MAX    10
#else
#define IS_SANITIZED 0
#define CPU_S_MAX    1
#endif

typedef void use_fn(const uint8_t *data, size_t bytes);

static uint8_t *read_file(const char *path, size_t *ret_bytes)
{
	struct stat status;
	int fd = (int)CHECK_CALL(open(path, O_RDONLY | O_CLOEXEC));
	uint8_t *data;

	CHECK_CALL(fstat(fd, &status));
	/* Of exactly its length, so that a sanitizer sees a byte too many. */
	data = malloc(status.st_size ? (size_t)status.st_size : 1);
	CHECK(data);
	CHECK_EQ(read(fd, data, (size_t)status.st_size), status.st_size);
	close(fd);
	*ret_bytes = (size_t)status.st_size;
	return data;
}

static uint64_t address_space_bytes(void)
{
	FILE *file = fopen("/proc/self/statm", "re");
	unsigned long long pages = 0;

	CHECK(file);
	CHECK_EQ(fscanf(file, "%llu", &pages), 1);
	fclose(file);
	return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* In a child of its own: what it takes is then its own. */
static void use_within_bounds(const char *path, use_fn *use, bool limits_addresses)
{
	struct rusage usage, before;
	size_t bytes;
	uint8_t *data = read_file(path, &bytes);
	long long cpu_us;

	getrusage(RUSAGE_SELF, &before);
	if (limits_addresses && !IS_SANITIZED) {
		uint64_t limit = address_space_bytes() + MEMORY_MAX;
		struct rlimit addresses = {.rlim_cur = limit, .rlim_max = limit};

		/* Memory that is asked for and never used counts too. */
		CHECK_CALL(setrlimit(RLIMIT_AS, &addresses));
	}
	use(data, bytes);
	getrusage(RUSAGE_SELF, &usage);
	cpu_us = (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000ll
		 + usage.ru_utime.tv_usec + usage.ru_stime.tv_usec;
	if ((double)cpu_us > CPU_S_MAX * 1e6 * check_time_factor())
		CHECK_FAIL("%s took %lld ms", path, cpu_us / 1000);
	if (!IS_SANITIZED && (usage.ru_maxrss - before.ru_maxrss) * 1024ll > MEMORY_MAX)
		CHECK_FAIL("%s took %ld KiB", path, usage.ru_maxrss - before.ru_maxrss);
	free(data);
}

static unsigned use_folder(const char *folder, use_fn *use, bool limits_addresses,
			   struct hostile_counts *counts)
{
	const char *fixtures = getenv("LAZYRESTORE_FIXTURES");
	char path[512];
	struct dirent *entry;
	unsigned count = 0;
	DIR *files;

	if (!fixtures)
		SKIP("LAZYRESTORE_FIXTURES is not set");
	snprintf(path, sizeof(path), "%s/%s", fixtures, folder);
	files = opendir(path);
	CHECK(files);
	while ((entry = readdir(files))) {
		size_t length = strlen(entry->d_name);
		pid_t pid;

		if (length < 4 || strcmp(entry->d_name + length - 4, ".lzr") != 0)
			continue;
		snprintf(path, sizeof(path), "%s/%s/%s", fixtures, folder, entry->d_name);
		pid = (pid_t)CHECK_CALL(fork());
		if (pid == 0) {
			use_within_bounds(path, use, limits_addresses);
			*counts = hostile_counts;
			_exit(0);
		}
		int status;

		CHECK_EQ(waitpid(pid, &status, 0), pid);
		if (check_state->outcome != CHECK_PASSED)
			_exit(101); /* the child has said what */
		if (status != 0)
			CHECK_FAIL("%s: the child ended with status %#x", path, status);
		hostile_counts = *counts; /* the child began with what we have */
		count++;
	}
	closedir(files);
	return count;
}

static unsigned use_all(use_fn *use, bool limits_addresses)
{
	struct hostile_counts *counts = mmap(NULL, sizeof(*counts), PROT_READ | PROT_WRITE,
					     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	unsigned count;

	CHECK(counts != MAP_FAILED);
	count = use_folder(".", use, limits_addresses, counts);
	CHECK(count > 10);
	count += use_folder("broken", use, limits_addresses, counts);
	CHECK(count > 100);
	return count + use_folder("fuzz", use, limits_addresses, counts);
}

static void every_image_is_read_within_bounds(void)
{
	unsigned count = use_all(hostile_read, true);

	/* If all were refused at once, nothing would have been tried. */
	CHECK_EQ(hostile_counts.images, count);
	CHECK(hostile_counts.opened > 60);
	CHECK(hostile_counts.clusters_read > 500);
	CHECK(hostile_counts.clusters_refused > 30);
}

static void every_image_is_restored_within_bounds(void)
{
	if (!hostile_can_restore())
		SKIP("no userfaultfd that serves system calls too");
	use_all(hostile_restore, false);
	CHECK(hostile_counts.sessions > 60);
	CHECK(hostile_counts.pages_touched > 1000);
	CHECK(hostile_counts.pages_fenced > 30);
}

static const struct check_case cases[] = {
	CHECK_CASE_LIMIT(every_image_is_read_within_bounds, 60),
	CHECK_CASE_LIMIT(every_image_is_restored_within_bounds, 60),
};
CHECK_MAIN(cases)
