/*
 * A parent with forked children: memory that they had from it and changed, memory that all of them
 * share, and a child that has ended and waits to be asked for its exit code.
 *
 *     family SOCKET CHILDREN PAGES
 *
 * Each member has PAGES pages of its own; the parent's are of version 1, and each child has written
 * some of them anew. As many pages are shared, each of them written by one member in turn. Lines
 * that it answers (see answers.h):
 *
 *     check        "MEMBERS BAD STEPS": pages that are not as they must be, and steps done by all
 *     work STEPS   each member writes pages of both, and checks some that it did not write
 *     reap         the exit code of the child that has ended
 *     fork         one child more, of the youngest one
 *     exit CODE    of the parent, after its children
 */
#include <inttypes.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "answers.h"
#include "pages.h"

#define MEMBERS_MAX 16
#define ZOMBIE_CODE 42

enum order { ORDER_NONE, ORDER_CHECK, ORDER_WORK, ORDER_FORK, ORDER_EXIT };

/* In shared memory: the parent writes an order, then its number; members answer with that number.
 */
struct board {
	atomic_uint_fast64_t number;
	uint64_t order, argument, members;
	struct answer {
		atomic_uint_fast64_t number;
		uint64_t bad, steps;
		pid_t pid;
	} answers[MEMBERS_MAX];
};

static struct board *board;
static unsigned char *own, *shared;
static uint32_t *versions; /* of own pages: private too */
static uint32_t *shared_versions;
static uint64_t page_count, member, steps;

static void *map_bytes(size_t length, int flags)
{
	void *memory = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags, -1, 0);

	if (memory == MAP_FAILED)
		answers_fail("mmap");
	return memory;
}

static void write_own(uint64_t number, uint32_t version)
{
	versions[number] = version;
	pages_write(own + number * PAGE_BYTES, number, version);
}

/* Pages of which the number divided by the members leaves this one's number are its own to write.
 */
static void write_shared(uint64_t number, uint32_t version)
{
	shared_versions[number] = version;
	pages_write(shared + number * PAGE_BYTES, number + (UINT64_C(1) << 32), version);
}

static uint64_t count_bad(void)
{
	uint64_t bad = 0;

	for (uint64_t i = 0; i < page_count; i++)
		bad += !pages_are(own + i * PAGE_BYTES, i, versions[i])
		       + !pages_are(shared + i * PAGE_BYTES, i + (UINT64_C(1) << 32),
				    shared_versions[i]);
	return bad;
}

static uint64_t work(uint64_t count)
{
	uint64_t bad = 0;

	for (uint64_t i = 0; i < count; i++, steps++) {
		uint64_t number = pages_mix(steps << 8 | member) % page_count;
		uint64_t mine = number / MEMBERS_MAX * MEMBERS_MAX + member;
		uint64_t other = pages_mix(number) % page_count;

		bad += !pages_are(own + other * PAGE_BYTES, other, versions[other]);
		write_own(number, (uint32_t)(2 + member + steps));
		if (mine < page_count)
			write_shared(mine, (uint32_t)(2 + member + steps));
	}
	return bad;
}

/* What a member does from then on; `already` is the number of the last order that it has seen. */
static _Noreturn void live_as_member(uint64_t already);

static void obey(uint64_t number)
{
	struct answer *answer = &board->answers[member];

	if (board->order == ORDER_CHECK)
		answer->bad = count_bad();
	if (board->order == ORDER_WORK)
		answer->bad = work(board->argument);
	if (board->order == ORDER_EXIT)
		_exit((int)board->argument);
	if (board->order == ORDER_FORK && member == board->members - 1) {
		pid_t pid = fork();

		if (pid == 0) {
			member++;
			for (uint64_t i = 0; i < page_count; i += member + 2)
				write_own(i, (uint32_t)(10 + member));
			live_as_member(number);
		}
		board->answers[member + 1].pid = pid;
	}
	answer->steps = steps;
	/* With the parent's acquire: what the answer says. */
	atomic_store_explicit(&answer->number, number, memory_order_release);
}

static _Noreturn void live_as_member(uint64_t already)
{
	for (;;) {
		uint64_t number = atomic_load_explicit(&board->number, memory_order_acquire);

		if (number != already)
			obey(number);
		else
			usleep(500);
		already = number;
	}
}

static void start_children(uint64_t children)
{
	board->members = 1 + children;
	for (uint64_t child = 1; child <= children; child++) {
		pid_t pid = fork();

		board->answers[child].pid = pid;
		if (pid < 0)
			answers_fail("fork");
		if (pid > 0)
			continue;
		member = child;
		for (uint64_t i = 0; i < page_count; i += child + 2)
			write_own(i, (uint32_t)(10 + child));
		live_as_member(0);
	}
}

static void prepare(uint64_t pages)
{
	page_count = pages;
	board = map_bytes(sizeof(*board), MAP_SHARED);
	own = map_bytes(pages * PAGE_BYTES, MAP_PRIVATE);
	shared = map_bytes(pages * PAGE_BYTES, MAP_SHARED);
	versions = map_bytes(pages * sizeof(*versions), MAP_PRIVATE);
	shared_versions = map_bytes(pages * sizeof(*shared_versions), MAP_SHARED);
	for (uint64_t i = 0; i < pages; i++) {
		write_own(i, 1);
		write_shared(i, 1);
	}
}

/* Have all members obey; what they answered, as a line. */
static void give_order(uint64_t order, uint64_t argument, char *answer)
{
	uint64_t bad = 0, all = 0;
	uint64_t number = board->number + 1;

	board->order = order;
	board->argument = argument;
	/* With the members' acquire: the order itself. */
	atomic_store_explicit(&board->number, number, memory_order_release);
	obey(number);
	for (uint64_t i = 0; i < board->members; i++) {
		while (atomic_load_explicit(&board->answers[i].number, memory_order_acquire)
		       != number)
			usleep(200);
		bad += board->answers[i].bad;
		all += board->answers[i].steps;
	}
	sprintf(answer, "%" PRIu64 " %" PRIu64 " %" PRIu64, board->members, bad, all);
}

static void end_children(uint64_t code)
{
	board->order = ORDER_EXIT;
	board->argument = code;
	atomic_store_explicit(&board->number, board->number + 1, memory_order_release);
	while (wait(NULL) > 0)
		;
	exit((int)code);
}

static void run(const char *line, pid_t zombie, char *answer)
{
	uint64_t argument = 0;
	char word[16] = "";
	int status;

	sscanf(line, "%15s %" SCNu64, word, &argument);
	if (strcmp(word, "check") == 0) {
		give_order(ORDER_CHECK, 0, answer);
	} else if (strcmp(word, "work") == 0) {
		give_order(ORDER_WORK, argument, answer);
	} else if (strcmp(word, "fork") == 0 && board->members < MEMBERS_MAX) {
		give_order(ORDER_FORK, 0, answer);
		board->members++;
	} else if (strcmp(word, "reap") == 0 && waitpid(zombie, &status, 0) == zombie) {
		sprintf(answer, "%d", WIFEXITED(status) ? WEXITSTATUS(status) : -1);
	} else if (strcmp(word, "exit") == 0) {
		end_children(argument);
	} else {
		strcpy(answer, "failed");
	}
}

int main(int argc, char **argv)
{
	char line[64], answer[128];
	pid_t zombie;
	int fd;

	if (argc != 4)
		return 2;
	prepare(strtoull(argv[3], NULL, 10));
	start_children(strtoull(argv[2], NULL, 10));
	zombie = fork();
	if (zombie == 0)
		_exit(ZOMBIE_CODE);
	fd = answers_listen(argv[1]);
	for (;;) {
		int connection = answers_next(fd, line, sizeof(line));

		if (connection < 0)
			continue;
		run(line, zombie, answer);
		answers_give(connection, answer);
	}
}
