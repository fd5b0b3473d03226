/* Opening and closing sessions again and again: file descriptors, threads, mappings and memory are
 * back to where they were. Under AddressSanitizer each case ends with a look for leaks. */
#include "check.h"

#include <dirent.h>
#include <malloc.h>
#include <pthread.h>
#include <stdbool.h>
#include <time.h>

#include "image_builder.h"

#define PAGE  4096u
#define PAGES 300u
#ifdef __SANITIZE_THREAD__
#define CYCLES 200
#else
#define CYCLES 1000
#endif
/* For what is made once: handlers, zstd, the stacks of threads that the C library keeps. */
#define WARM_UP 50

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OWN_ALLOCATOR 0 /* theirs maps and keeps memory as it likes */
#else
#define OWN_ALLOCATOR 1
#endif

struct counts {
	unsigned fds;
	unsigned threads;
	unsigned mappings;
	unsigned long mapped_pages; /* mappings side by side count as one */
	size_t heap_bytes;
};

static unsigned count_entries(const char *path)
{
	DIR *folder = opendir(path);
	unsigned entries = 0;

	CHECK(folder);
	while (readdir(folder))
		entries++;
	closedir(folder);
	return entries;
}

static unsigned count_lines(const char *path)
{
	FILE *file = fopen(path, "r");
	unsigned lines = 0;
	int byte;

	CHECK(file);
	while ((byte = getc(file)) != EOF)
		lines += byte == '\n';
	fclose(file);
	return lines;
}

static unsigned long count_pages(void)
{
	FILE *file = fopen("/proc/self/statm", "r");
	unsigned long pages;

	CHECK(file);
	CHECK_EQ(fscanf(file, "%lu", &pages), 1);
	fclose(file);
	return pages;
}

static struct counts count_all(void)
{
	return (struct counts){
		.fds = count_entries("/proc/self/fd"),
		.threads = count_entries("/proc/self/task"),
		.mappings = count_lines("/proc/self/maps"),
		.mapped_pages = count_pages(),
		.heap_bytes = mallinfo2().uordblks,
	};
}

/* Count when there are no more threads than there were at first: one that was joined may be in
 * /proc for a moment more. */
static struct counts count_later(unsigned threads)
{
	struct timespec pause = {.tv_nsec = 10000000};
	struct counts now = count_all();

	for (int tries = 0; tries < 500 && now.threads > threads; tries++) {
		nanosleep(&pause, NULL);
		now = count_all();
	}
	return now;
}

static bool is_back(const struct counts *before, const struct counts *now)
{
	if (now->fds > before->fds || now->threads > before->threads)
		return false;
	return !OWN_ALLOCATOR
	       || (now->mappings <= before->mappings && now->mapped_pages <= before->mapped_pages
		   && now->heap_bytes <= before->heap_bytes);
}

static void check_back(const struct counts *before, const struct counts *now)
{
	CHECK_EQ(now->fds, before->fds);
	CHECK_EQ(now->threads, before->threads);
	if (OWN_ALLOCATOR) {
		CHECK_EQ(now->mappings, before->mappings);
		CHECK_EQ(now->mapped_pages, before->mapped_pages);
		CHECK_EQ(now->heap_bytes, before->heap_bytes);
	}
}

static struct image image;

static void make_image(void)
{
	image_init(&image, PAGE, 65536);
	image_add(&image, "main", PAGES * PAGE - 100, "ddrzdh");
	image_add(&image, "more", 20 * PAGE, "dz");
	image_build(&image);
	image_publish(&image);
}

static lr_session *open_session(void)
{
	struct lr_session_options options = {.privilege = LR_PRIVILEGE_AUTO, .trace_records = 64};
	struct lr_problem problem;
	lr_session *session;
	lr_image *opened;
	int code;

	CHECK_EQ(lr_image_open(image.path, &opened, NULL), LR_OK);
	code = lr_session_open(opened, &options, &session, &problem);
	/* The session holds the image. */
	lr_image_close(opened);
	if (code == LR_ERR_PERMISSION || code == LR_ERR_UNSUPPORTED)
		SKIP("no userfaultfd here: %s", strerror(problem.os_error));
	CHECK_EQ(code, LR_OK);
	return session;
}

static void touch(uint8_t *memory, unsigned step)
{
	for (uint64_t page = step % 7; page < PAGES; page += 7)
		CHECK_EQ(memory[page * PAGE], image.regions[0].bytes[page * PAGE]);
	memory[5 * PAGE + 8] = 1;
}

static uint8_t *attach(lr_session *session)
{
	void *memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	CHECK(memory != MAP_FAILED);
	CHECK_EQ(lr_session_attach(session, 0, memory, NULL), LR_OK);
	return memory;
}

static void map_and_close(unsigned step)
{
	lr_session *session = open_session();
	void *memory, *more;
	uint64_t done;

	CHECK_EQ(lr_session_map(session, 0, &memory, NULL), LR_OK);
	CHECK_EQ(lr_session_map(session, 1, &more, NULL), LR_OK);
	touch(memory, step);
	if (step % 2)
		CHECK_EQ(lr_session_populate(session, 0, 0, PAGES * PAGE / 2, -1, &done, NULL),
			 LR_OK);
	lr_session_close(session);
}

static void attach_and_detach(unsigned step)
{
	lr_session *session = open_session();
	uint8_t *memory = attach(session);

	touch(memory, step);
	CHECK_EQ(lr_session_suspend(session, 0), LR_OK);
	CHECK_CALL(munmap(memory, PAGES * PAGE));
	CHECK_EQ(lr_session_detach(session, 0), LR_OK);
	lr_session_close(session);
}

/* The memory stays, fenced where it was not touched, and goes later. */
static void attach_and_leave(unsigned step)
{
	lr_session *session = open_session();
	uint8_t *memory = attach(session);

	touch(memory, step);
	lr_session_close(session);
	CHECK_CALL(munmap(memory, PAGES * PAGE));
}

static void fill_and_close(unsigned step)
{
	lr_session *session = open_session();
	void *memory;

	CHECK_EQ(lr_session_map(session, 0, &memory, NULL), LR_OK);
	CHECK_EQ(lr_session_fill(session, NULL), LR_OK);
	touch(memory, step);
	/* Of four, one waits for the fill, and the others close in the middle of it. */
	if (step % 4 == 0)
		CHECK_EQ(lr_session_wait(session, -1), LR_OK);
	lr_session_close(session);
}

static void fork_and_close(unsigned step)
{
	lr_session *session = open_session();
	void *memory;
	pid_t pid;

	CHECK_EQ(lr_session_map(session, 0, &memory, NULL), LR_OK);
	touch(memory, step);
	pid = fork();
	CHECK(pid != -1);
	if (pid == 0) {
		touch(memory, step + 1);
		if (step % 2)
			lr_session_close(session);
		_exit(0);
	}
	CHECK_CHILD(pid);
	lr_session_close(session);
}

/* What the C library keeps for threads depends on how many there are at a moment: that may grow
 * once more. What is left behind by each cycle, or by some, grows each time. */
static void run_cycles(void (*cycle)(unsigned), unsigned cycles)
{
	struct counts before, now;
	unsigned threads;

	make_image();
	threads = count_all().threads;
	for (unsigned i = 0; i < WARM_UP; i++)
		cycle(i);
	now = count_later(threads);
	for (int tries = 0; tries < 4 && (tries == 0 || !is_back(&before, &now)); tries++) {
		before = now;
		for (unsigned i = 0; i < cycles; i++)
			cycle(i);
		now = count_later(threads);
	}
	if (!is_back(&before, &now))
		check_back(&before, &now);
	image_fini(&image);
}

static void maps_leave_nothing(void)
{
	run_cycles(map_and_close, CYCLES);
}

static void attachments_leave_nothing(void)
{
	run_cycles(attach_and_detach, CYCLES / 4);
}

static void fences_leave_nothing(void)
{
	run_cycles(attach_and_leave, CYCLES / 4);
}

static void fills_leave_nothing(void)
{
	run_cycles(fill_and_close, CYCLES / 4);
}

static void forks_leave_nothing(void)
{
#ifdef __SANITIZE_THREAD__
	SKIP("ThreadSanitizer does not bear threads after fork");
#endif
#ifdef __SANITIZE_ADDRESS__
	/* As the pager's second one does: it begins some time after its session. */
	SKIP("AddressSanitizer's malloc hangs in a child forked while a thread begins");
#endif
	run_cycles(fork_and_close, CYCLES / 5);
}

/* What fails half-way gives back what it had. */
static void fail(unsigned step)
{
	uint64_t root = image.root_offset + step % 16;
	lr_image *opened;
	lr_session *session = open_session();
	uint8_t *memory = attach(session);
	uint8_t byte = image.file[root];
	void *mapped;

	CHECK_EQ(lr_session_map(session, 0, &mapped, NULL), LR_ERR_BUSY);
	CHECK_EQ(lr_session_attach(session, 1, memory + 1, NULL), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_session_map(session, 2, &mapped, NULL), LR_ERR_NOT_FOUND);
	lr_session_close(session);
	CHECK_CALL(munmap(memory, PAGES * PAGE));
	/* An image whose root is damaged. */
	byte ^= 1;
	CHECK_EQ(pwrite(image.fd, &byte, 1, (off_t)root), 1);
	CHECK(lr_image_open(image.path, &opened, NULL) < 0);
	byte ^= 1;
	CHECK_EQ(pwrite(image.fd, &byte, 1, (off_t)root), 1);
	CHECK_EQ(lr_image_open("/nowhere/at.all", &opened, NULL), LR_ERR_NOT_FOUND);
}

static void failures_leave_nothing(void)
{
	run_cycles(fail, CYCLES / 4);
}

static const struct check_case cases[] = {
	CHECK_CASE_LIMIT(maps_leave_nothing, 240),
	CHECK_CASE_LIMIT(attachments_leave_nothing, 240),
	CHECK_CASE_LIMIT(fences_leave_nothing, 240),
	CHECK_CASE_LIMIT(fills_leave_nothing, 240),
	CHECK_CASE_LIMIT(forks_leave_nothing, 240),
	CHECK_CASE_LIMIT(failures_leave_nothing, 240),
};
CHECK_MAIN(cases)
