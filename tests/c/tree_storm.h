/*
 * What a process may do with memory that is being restored, at random, from several threads: read,
 * write, give up, move, grow, unmap, map anew, fork, and all of that again in children. Each thread
 * has pages of its own, and notes what has to be where. A child checks its thread's, and also what
 * the notes of the others say, where these were between two steps when it was forked. Include after
 * tree_setting.h.
 */
#ifndef LR_TESTS_TREE_STORM_H
#define LR_TESTS_TREE_STORM_H

#define STORM_THREADS 3
#define STORM_PAGES   96 /* of each */
#define STORM_ALL     (STORM_THREADS * STORM_PAGES)
#define STORM_RUN     8

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

enum storm_content { STORM_DUMPED, STORM_ZEROS, STORM_OWN, STORM_NOWHERE };

/* All in one page: what a child has of it is of one moment. */
struct storm_notes {
	_Atomic uint32_t steps; /* odd: in the midst of one */
	uint8_t contents[STORM_PAGES];
	uint8_t is_written[STORM_PAGES]; /* its first byte may be 0xA5 */
	uint8_t *places[STORM_PAGES];
};
_Static_assert(sizeof(struct storm_notes) <= KERNEL_PAGE, "a page has room for it");

struct storm {
	struct peer *peer;
	uint64_t chance;
	uint32_t number;
	uint32_t generation;
};

struct storm_shared {
	_Atomic bool is_over;
	_Atomic uint32_t forks;
	/* Of what is wrong first. */
	_Atomic uint32_t is_wrong;
	char what[200];
};

static struct storm_notes *storm_notes; /* one a thread; private */
static struct storm_shared *storm_shared;
static uint32_t storm_forks_max;

__attribute__((format(printf, 1, 2))) static void storm_wrong(const char *format, ...)
{
	uint32_t none = 0;
	va_list arguments;

	if (!atomic_compare_exchange_strong(&storm_shared->is_wrong, &none, 1))
		return;
	va_start(arguments, format);
	vsnprintf(storm_shared->what, sizeof(storm_shared->what), format, arguments);
	va_end(arguments);
	atomic_store(&storm_shared->is_wrong, 2);
	atomic_store(&storm_shared->is_over, true);
}

/* As one byte more or less, where it may just have been written. */
static bool storm_is_as(const uint8_t *at, const uint8_t *expected, bool is_written)
{
	return memcmp(at + 1, expected + 1, KERNEL_PAGE - 1) == 0
	       && (at[0] == expected[0] || (is_written && at[0] == 0xA5));
}

static bool storm_is_right(const struct storm_notes *notes, uint32_t number, uint64_t page)
{
	const uint8_t *at = notes->places[page];
	uint8_t expected[KERNEL_PAGE] = {0};

	if (notes->contents[page] == STORM_NOWHERE)
		return true;
	if (notes->contents[page] == STORM_OWN)
		memset(expected, 0x5A, KERNEL_PAGE);
	if (notes->contents[page] == STORM_DUMPED)
		memcpy(expected, image.regions[0].bytes + (number * STORM_PAGES + page) * PAGE,
		       PAGE);
	return storm_is_as(at, expected, notes->is_written[page]);
}

static void storm_check(const struct storm *storm, uint32_t number, uint64_t first, uint64_t end,
			const char *where)
{
	const struct storm_notes *notes = (void *)((uint8_t *)storm_notes + number * PAGE);

	for (uint64_t page = first; page < end && !atomic_load(&storm_shared->is_over); page++)
		if (!storm_is_right(notes, number, page))
			storm_wrong("page %ju of thread %u %s (thread %u, generation %u): content "
				    "%u, written %u, but begins %02x %02x, at %p",
				    (uintmax_t)page, number, where, storm->number,
				    storm->generation, notes->contents[page],
				    notes->is_written[page], notes->places[page][0],
				    notes->places[page][1], (void *)notes->places[page]);
}

/* ---- Steps ---- */

struct storm_step {
	struct storm_notes *notes;
	uint64_t page, count;
	uint8_t *at;
	size_t bytes;
};

static void storm_move(struct storm_step *step, uint8_t *to)
{
	for (uint64_t i = 0; i < step->count; i++)
		step->notes->places[step->page + i] = to + i * PAGE;
}

static void storm_note(struct storm_step *step, enum storm_content content)
{
	memset(step->notes->contents + step->page, content, step->count);
	memset(step->notes->is_written + step->page, 0, step->count);
}

static uint8_t *storm_room(size_t bytes)
{
	uint8_t *room = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(room != MAP_FAILED);
	return room;
}

/* What is moved must be one mapping: as far as that is so. */
static void storm_cut(struct storm_step *step)
{
	char text[256 << 10];
	uintmax_t start, end, at = (uintptr_t)step->at;
	int fd = (int)CHECK_CALL(open("/proc/self/maps", O_RDONLY | O_CLOEXEC));
	size_t used = 0;
	ssize_t got;

	while ((got = read(fd, text + used, sizeof(text) - 1 - used)) > 0)
		used += (size_t)got;
	close(fd);
	text[used] = '\0';
	for (char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (sscanf(line, "%jx-%jx ", &start, &end) != 2 || at < start || at >= end)
			continue;
		if (step->bytes > end - at)
			step->bytes = end - at;
		step->count = step->bytes / PAGE;
		return;
	}
	CHECK_FAIL("nothing is mapped at %p", (void *)step->at);
}

static void storm_remap(struct storm_step *step, size_t bytes, int flags, uint8_t *to)
{
	void *moved =
		mremap(step->at, step->bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED | flags, to);

	if (moved == MAP_FAILED)
		CHECK_FAIL("mremap: %s", strerror(errno));
	storm_move(step, to);
}

/* Longer, at another place: what is more is zeros. */
static void storm_grow(struct storm_step *step)
{
	uint8_t *to = storm_room(step->bytes + 2 * PAGE);

	storm_remap(step, step->bytes + 2 * PAGE, 0, to);
	if (!kernel_is_zero(to + step->bytes, 2 * PAGE))
		storm_wrong("what a mapping is longer by is not zeros");
	CHECK_CALL(munmap(to + step->bytes, 2 * PAGE));
}

/* What was moved leaves zeros behind. */
static void storm_leave(struct storm_step *step)
{
	uint8_t *from = step->at;

	storm_remap(step, step->bytes, MREMAP_DONTUNMAP, storm_room(step->bytes));
	if (!kernel_is_zero(from, step->bytes))
		storm_wrong("what was moved away is not zeros where it was");
	CHECK_CALL(munmap(from, step->bytes));
}

static void storm_map_anew(struct storm_step *step)
{
	CHECK_CALL(munmap(step->at, step->bytes));
	/* Nobody else may have come. */
	if (mmap(step->at, step->bytes, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0)
	    == MAP_FAILED) {
		storm_note(step, STORM_NOWHERE);
		return;
	}
	memset(step->at, 0x5A, step->bytes);
	storm_note(step, STORM_OWN);
}

/* Onto another run of this thread's, as long, which is no more. */
static void storm_move_onto(struct storm *storm, struct storm_step *step)
{
	uint64_t page = image_random(&storm->chance) % (STORM_PAGES - STORM_RUN);
	uint8_t *to = step->notes->places[page];

	for (uint64_t i = 0; i < step->count; i++)
		if (step->notes->contents[page + i] == STORM_NOWHERE
		    || step->notes->places[page + i] != to + i * PAGE
		    || (page + i >= step->page && page + i < step->page + step->count))
			return;
	storm_remap(step, step->bytes, 0, to);
	memset(step->notes->contents + page, STORM_NOWHERE, step->count);
}

static void storm_fork(struct storm *storm);

/* A run that lies together, and is one mapping. */
static bool storm_choose(struct storm *storm, struct storm_step *ret_step)
{
	struct storm_notes *notes = (void *)((uint8_t *)storm_notes + storm->number * PAGE);
	uint64_t page = image_random(&storm->chance) % STORM_PAGES;
	uint64_t most = 1 + image_random(&storm->chance) % STORM_RUN, count = 0;
	bool is_own = notes->contents[page] == STORM_OWN;

	if (notes->contents[page] == STORM_NOWHERE)
		return false;
	while (count < most && page + count < STORM_PAGES
	       && notes->contents[page + count] != STORM_NOWHERE
	       && (notes->contents[page + count] == STORM_OWN) == is_own
	       && notes->places[page + count] == notes->places[page] + count * PAGE)
		count++;
	*ret_step = (struct storm_step){.notes = notes,
					.page = page,
					.count = count,
					.at = notes->places[page],
					.bytes = count * PAGE};
	return true;
}

static void storm_step(struct storm *storm)
{
	struct storm_step step;
	uint64_t what = image_random(&storm->chance) % 16;

	if (!storm_choose(storm, &step))
		return;
	if (what < 6) {
		storm_check(storm, storm->number, step.page, step.page + step.count, "later");
		return;
	}
	if (what < 8) {
		storm_fork(storm);
		return;
	}
	if (what >= 12)
		storm_cut(&step);
	atomic_fetch_add(&step.notes->steps, 1);
	/* What was given up of memory of one's own, or moved in part, cannot be told from the
	 * neighbours' mappings: those are only moved and unmapped. */
	if (what == 8) {
		step.notes->is_written[step.page] = 1;
		*(volatile uint8_t *)step.at = 0xA5;
	} else if (what < 11) {
		CHECK_CALL(madvise(step.at, step.bytes, MADV_DONTNEED));
		storm_note(&step, STORM_ZEROS);
	} else if (what == 11) {
		storm_map_anew(&step);
	} else if (what == 12 && step.notes->contents[step.page] != STORM_OWN) {
		storm_grow(&step);
	} else if (what == 13) {
		storm_leave(&step);
	} else if (what == 14) {
		storm_move_onto(storm, &step);
	} else if (what == 15) {
		storm_remap(&step, step.bytes, 0, storm_room(step.bytes));
	}
	atomic_fetch_add(&step.notes->steps, 1);
}

/* In a child, of which only this thread came along. */
static void storm_be_child(struct storm *storm)
{
	uint64_t what = image_random(&storm->chance) % 16;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	storm->generation++;
	if (what == 0)
		execl("/bin/true", "true", NULL);
	if (what < 2)
		_exit(0);
	for (uint32_t i = 0; i < STORM_THREADS; i++) {
		const struct storm_notes *notes = (void *)((uint8_t *)storm_notes + i * PAGE);

		if (atomic_load(&notes->steps) % 2 == 0)
			storm_check(storm, i, 0, STORM_PAGES, "in a child");
	}
	if (storm->generation < 3)
		for (int i = 0; i < 12 && !atomic_load(&storm_shared->is_over); i++)
			storm_step(storm);
	storm_check(storm, storm->number, 0, STORM_PAGES, "at a child's end");
	_exit(0);
}

static void storm_fork(struct storm *storm)
{
	int status;
	pid_t pid;

	if (atomic_fetch_add(&storm_shared->forks, 1) >= storm_forks_max)
		return;
	pid = (pid_t)CHECK_CALL(fork());
	if (pid == 0)
		storm_be_child(storm);
	image_random(&storm->chance); /* not what the child does */
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	if (status != 0)
		storm_wrong("a child ended with status %d", status);
}

static void *storm_run(void *argument)
{
	struct storm *storm = argument;

	while (!atomic_load(&storm_shared->is_over)
	       && atomic_load(&storm_shared->forks) < storm_forks_max)
		storm_step(storm);
	return NULL;
}

/* Before the peer is started. */
static void storm_prepare(void)
{
	storm_shared = mmap(NULL, sizeof(*storm_shared), PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(storm_shared != MAP_FAILED);
}

/* For a peer: until so many were forked, in all generations. 0, or 1 where something was wrong. */
static int64_t storm_all(struct peer *peer, uint64_t forks, uint64_t seed)
{
	struct storm storms[STORM_THREADS];
	pthread_t threads[STORM_THREADS];

	storm_forks_max = (uint32_t)forks;
	storm_notes = (void *)kernel_map(STORM_THREADS);
	for (uint32_t i = 0; i < STORM_THREADS; i++) {
		struct storm_notes *notes = (void *)((uint8_t *)storm_notes + i * PAGE);

		storms[i] = (struct storm){.peer = peer, .chance = seed * 977 + i, .number = i};
		for (uint64_t page = 0; page < STORM_PAGES; page++)
			notes->places[page] = peer->memory + (i * STORM_PAGES + page) * PAGE;
	}
	for (uint32_t i = 0; i < STORM_THREADS; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, storm_run, &storms[i]), 0);
	for (uint32_t i = 0; i < STORM_THREADS; i++)
		pthread_join(threads[i], NULL);
	for (uint32_t i = 0; i < STORM_THREADS; i++)
		storm_check(&storms[i], i, 0, STORM_PAGES, "at the end");
	return atomic_load(&storm_shared->is_wrong) != 0;
}

static void storm_is_well(int64_t result)
{
	if (result != 0)
		CHECK_FAIL("%s", storm_shared->what);
}

#endif
