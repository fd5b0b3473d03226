/*
 * A program with much memory, any page of which can be checked, and changed in all the ways in
 * which programs change theirs, while it is being restored.
 *
 *     content SOCKET MIB
 *
 * The memory is in blocks of 1 MiB. Of 16 pages the last was never touched, and the eighth has
 * zeros that were written; the others begin with version 1. Lines that it answers (see answers.h):
 *
 *     check FIRST COUNT          "GOOD BAD VERSIONS": pages as they must be, others, sum of
 * versions page NUMBER                its bytes, in hexadecimal save PATH FIRST COUNT      writes
 * them to a file, by write(2) write FIRST COUNT VERSION  another version threads COUNT starts so
 * many that check pages at random for ever progress                   "CHECKS BAD" of them storm
 * CHILDREN FIRST COUNT each child checks so many pages, changes some, forks one that checks again;
 * "CHILDREN BAD", after the parent has found its own unchanged move BLOCK COUNT           mremap,
 * to another address drop BLOCK COUNT           madvise(MADV_DONTNEED): zeros from then on unmap
 * BLOCK COUNT          munmap map BLOCK COUNT            zeros where a block was that is unmapped
 *     exit CODE
 */
#include <pthread.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "answers.h"
#include "pages.h"

#define BLOCK_BYTES (1 << 20)
#define BLOCK_PAGES (BLOCK_BYTES / PAGE_BYTES)
#define BLOCKS_MAX  4096
#define THREADS_MAX 16
#define LINE_BYTES  (2 * PAGE_BYTES + 256)

/* Who looks at a block holds its lock; who changes where it lies, or what it holds, alone. */
struct block {
	pthread_rwlock_t lock;
	unsigned char *base;
	bool is_mapped;
	uint32_t versions[BLOCK_PAGES];
};

static struct block blocks[BLOCKS_MAX];
static uint64_t block_count;
static atomic_uint_fast64_t thread_checks, thread_bad;

struct tally {
	uint64_t good, bad, versions;
};

static bool is_page_right(const struct block *block, uint64_t number)
{
	unsigned index = number % BLOCK_PAGES;

	return pages_are(block->base + (size_t)index * PAGE_BYTES, number, block->versions[index]);
}

/* Without locks, for a child of a fork, which has one thread. */
static struct tally tally_pages(uint64_t first, uint64_t count, bool with_locks)
{
	struct tally tally = {0};

	for (uint64_t number = first; number < first + count; number++) {
		struct block *block = &blocks[number / BLOCK_PAGES];

		if (with_locks)
			pthread_rwlock_rdlock(&block->lock);
		if (block->is_mapped) {
			if (is_page_right(block, number))
				tally.good++;
			else
				tally.bad++;
			tally.versions += block->versions[number % BLOCK_PAGES];
		}
		if (with_locks)
			pthread_rwlock_unlock(&block->lock);
	}
	return tally;
}

static void write_page(uint64_t number, uint32_t version)
{
	struct block *block = &blocks[number / BLOCK_PAGES];
	unsigned index = number % BLOCK_PAGES;

	pages_write(block->base + (size_t)index * PAGE_BYTES, number, version);
	block->versions[index] = version;
}

static void prepare(uint64_t mib)
{
	unsigned char *memory;

	block_count = mib;
	memory = mmap(NULL, mib * BLOCK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);
	if (memory == MAP_FAILED)
		answers_fail("mmap");
	if (madvise(memory, mib * BLOCK_BYTES, MADV_NOHUGEPAGE))
		perror("madvise");
	for (uint64_t i = 0; i < block_count; i++) {
		pthread_rwlock_init(&blocks[i].lock, NULL);
		blocks[i].base = memory + i * BLOCK_BYTES;
		blocks[i].is_mapped = true;
	}
	for (uint64_t number = 0; number < block_count * BLOCK_PAGES; number++)
		if (number % 16 != 15)
			write_page(number, number % 16 != 7);
}

static void *check_for_ever(void *argument)
{
	uint64_t state = (uintptr_t)argument;

	for (;;) {
		uint64_t number;
		struct tally tally;

		state = pages_mix(state);
		number = state % (block_count * BLOCK_PAGES);
		tally = tally_pages(number, 1, true);
		atomic_fetch_add(&thread_bad, tally.bad);
		atomic_fetch_add(&thread_checks, 1);
		if (state % 64 == 0)
			usleep(1000);
	}
	return NULL;
}

static bool start_threads(uint64_t count)
{
	for (uintptr_t i = 1; i <= count; i++) {
		pthread_t thread;

		if (count > THREADS_MAX || pthread_create(&thread, NULL, check_for_ever, (void *)i))
			return false;
		pthread_detach(thread);
	}
	return true;
}

/* ---- Children ---- */

static uint64_t bad_of(pid_t pid)
{
	int status;

	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return 1;
	return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

/* A child's life: what it writes nobody else sees, but the child of its own. */
static void live_as_child(uint64_t first, uint64_t count)
{
	uint64_t bad = tally_pages(first, count, false).bad;
	pid_t pid;

	for (uint64_t number = first; number < first + count; number += 3)
		write_page(number, 77);
	pid = fork();
	if (pid == 0)
		_exit(tally_pages(first, count, false).bad != 0);
	bad += bad_of(pid) + tally_pages(first, count, false).bad;
	_exit(bad != 0);
}

static struct tally storm(uint64_t children, uint64_t first, uint64_t count)
{
	struct tally tally = {0};
	pid_t pids[256];

	if (children > 256)
		children = 256;
	for (uint64_t i = 0; i < children; i++) {
		pids[i] = fork();
		if (pids[i] == 0)
			live_as_child(first + i * count, count);
		tally.bad += tally_pages(first + i * count, 1, true).bad;
	}
	for (uint64_t i = 0; i < children; i++)
		tally.bad += bad_of(pids[i]);
	tally.bad += tally_pages(first, children * count, true).bad;
	tally.good = children;
	return tally;
}

/* ---- What happens to blocks ---- */

static bool move(struct block *block)
{
	unsigned char *place = mmap(NULL, BLOCK_BYTES, PROT_NONE,
				    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (place == MAP_FAILED
	    || mremap(block->base, BLOCK_BYTES, BLOCK_BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, place)
		       != place)
		return false;
	block->base = place;
	return true;
}

static bool drop(struct block *block)
{
	if (madvise(block->base, BLOCK_BYTES, MADV_DONTNEED))
		return false;
	memset(block->versions, 0, sizeof(block->versions));
	return true;
}

static bool unmap(struct block *block)
{
	block->is_mapped = false;
	return munmap(block->base, BLOCK_BYTES) == 0;
}

/* Where it was, unless another block has moved there. */
static bool map(struct block *block)
{
	unsigned char *place = mmap(block->base, BLOCK_BYTES, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (block->is_mapped || place == MAP_FAILED)
		return false;
	block->base = place;
	memset(block->versions, 0, sizeof(block->versions));
	block->is_mapped = true;
	return true;
}

static bool change(bool (*how)(struct block *), uint64_t first, uint64_t count)
{
	bool is_done = first + count <= block_count;

	for (uint64_t i = first; is_done && i < first + count; i++) {
		pthread_rwlock_wrlock(&blocks[i].lock);
		is_done = how(&blocks[i]);
		pthread_rwlock_unlock(&blocks[i].lock);
	}
	return is_done;
}

/* ---- Answers ---- */

static bool save(const char *path, uint64_t first, uint64_t count)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	bool is_done = fd >= 0;

	for (uint64_t number = first; is_done && number < first + count; number++) {
		struct block *block = &blocks[number / BLOCK_PAGES];
		unsigned char *page = block->base + number % BLOCK_PAGES * PAGE_BYTES;

		is_done = write(fd, page, PAGE_BYTES) == PAGE_BYTES;
	}
	return close(fd) == 0 && is_done;
}

static void show_page(uint64_t number, char *answer)
{
	unsigned char *page = blocks[number / BLOCK_PAGES].base + number % BLOCK_PAGES * PAGE_BYTES;

	for (unsigned i = 0; i < PAGE_BYTES; i++)
		sprintf(answer + (size_t)2 * i, "%02x", page[i]);
}

static void write_pages(uint64_t first, uint64_t count, uint32_t version)
{
	for (uint64_t number = first; number < first + count; number++) {
		struct block *block = &blocks[number / BLOCK_PAGES];

		pthread_rwlock_wrlock(&block->lock);
		write_page(number, version);
		pthread_rwlock_unlock(&block->lock);
	}
}

static void say_tally(struct tally tally, char *answer)
{
	sprintf(answer, "%" PRIu64 " %" PRIu64 " %" PRIu64, tally.good, tally.bad, tally.versions);
}

static bool run(const char *line, char *answer)
{
	uint64_t a = 0, b = 0, c = 0;
	char word[32] = "", path[128] = "";
	int numbers;

	strcpy(answer, "done");
	if (sscanf(line, "save %127s %" SCNu64 " %" SCNu64, path, &a, &b) == 3)
		return save(path, a, b);
	numbers = sscanf(line, "%31s %" SCNu64 " %" SCNu64 " %" SCNu64, word, &a, &b, &c) - 1;
	if (strcmp(word, "check") == 0 && numbers == 2)
		say_tally(tally_pages(a, b, true), answer);
	else if (strcmp(word, "page") == 0 && numbers == 1)
		show_page(a, answer);
	else if (strcmp(word, "write") == 0 && numbers == 3)
		write_pages(a, b, (uint32_t)c);
	else if (strcmp(word, "threads") == 0 && numbers == 1)
		return start_threads(a);
	else if (strcmp(word, "progress") == 0)
		sprintf(answer, "%" PRIuFAST64 " %" PRIuFAST64, thread_checks, thread_bad);
	else if (strcmp(word, "storm") == 0 && numbers == 3)
		say_tally(storm(a, b, c), answer);
	else if (strcmp(word, "move") == 0)
		return change(move, a, b);
	else if (strcmp(word, "drop") == 0)
		return change(drop, a, b);
	else if (strcmp(word, "unmap") == 0)
		return change(unmap, a, b);
	else if (strcmp(word, "map") == 0)
		return change(map, a, b);
	else if (strcmp(word, "exit") == 0)
		exit((int)a);
	else
		return false;
	return true;
}

int main(int argc, char **argv)
{
	static char line[256], answer[LINE_BYTES];
	int fd;

	if (argc != 3)
		return 2;
	prepare(strtoull(argv[2], NULL, 10));
	fd = answers_listen(argv[1]);
	for (;;) {
		int connection = answers_next(fd, line, sizeof(line));

		if (connection >= 0)
			answers_give(connection, run(line, answer) ? answer : "failed");
	}
}
