/* Touches of what is none of a live session's missing pages: another's fences, and other memory. */
#include "check.h"

#include "inline_support.h"

static _Thread_local sigjmp_buf *way_out;

static void leave(int number)
{
	(void)number;
	if (way_out)
		siglongjmp(*way_out, 1);
	_exit(99);
}

/* Again, in memory of ours rather than the session's. */
static void attach_own(struct lazy *lazy)
{
	struct lr_session_options options = {
		.privilege = LR_PRIVILEGE_AUTO,
		.fault_mode = LR_FAULT_INLINE,
	};

	lr_session_close(lazy->session);
	CHECK_EQ(lr_session_open(lazy->opened, &options, &lazy->session, NULL), LR_OK);
	lazy->memory = mmap(NULL, lazy->length, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK_EQ(lr_session_attach(lazy->session, 0, lazy->memory, NULL), LR_OK);
}

static void check_zeros(const uint8_t *memory, uint64_t bytes)
{
	for (uint64_t i = 0; i < bytes; i++)
		CHECK_EQ(memory[i], 0);
}

/* Memory of its own with pages missing, whose session has ended: fenced. */
static void leave_fenced(struct lazy *lazy, uint8_t *memory)
{
	struct lr_session_options options = {
		.privilege = LR_PRIVILEGE_AUTO,
		.fault_mode = LR_FAULT_INLINE,
	};

	CHECK_EQ(lr_session_open(lazy->opened, &options, &lazy->session, NULL), LR_OK);
	CHECK_EQ(lr_session_attach(lazy->session, 0, memory, NULL), LR_OK);
	CHECK_EQ(memory[0], lazy->expected[0]);
	lr_session_close(lazy->session);
}

static void check_fenced(const struct lazy *lazy, uint8_t *memory)
{
	volatile bool is_raised = false;
	sigjmp_buf here;

	CHECK_EQ(memory[0], lazy->expected[0]);
	way_out = &here;
	if (sigsetjmp(here, 1) == 0)
		(void)*(volatile uint8_t *)(memory + 5 * PAGE);
	else
		is_raised = true;
	way_out = NULL;
	CHECK(is_raised);
}

static uint8_t *map_own(uint8_t *at, uint64_t bytes)
{
	void *memory =
		mmap(at, bytes, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (at ? MAP_FIXED : 0), -1, 0);

	CHECK(memory != MAP_FAILED);
	return memory;
}

/* A fence that another session left is none of a live one's missing pages, also where the kernel
 * does not tell them apart, and where that one had memory itself before it was given back. */
static void fences_of_sessions_that_ended_are_signals(void)
{
	struct sigaction action = {.sa_handler = leave, .sa_flags = SA_NODEFER};
	struct lazy ended, live;
	uint8_t *memory;

	CHECK_CALL(sigaction(SIGBUS, &action, NULL));
	CHECK_CALL(sigaction(SIGSEGV, &action, NULL));
	lazy_open(&ended, PAGE, 64 * PAGE, "d");
	lr_session_close(ended.session);
	lazy_open(&live, PAGE, 256 * PAGE, "d");
	memory = map_own(NULL, 64 * PAGE);
	leave_fenced(&ended, memory);
	check_fenced(&ended, memory);
	CHECK_MEM(live.memory, live.expected, 100 * PAGE);
	CHECK_EQ(munmap(memory, 64 * PAGE), 0);

	attach_own(&live);
	CHECK_EQ(lr_session_fill(live.session, NULL), LR_OK);
	CHECK_EQ(lr_session_wait(live.session, -1), LR_OK);
	map_own(live.memory + 64 * PAGE, 64 * PAGE);
	leave_fenced(&ended, live.memory + 64 * PAGE);
	check_fenced(&ended, live.memory + 64 * PAGE);
	CHECK_MEM(live.memory, live.expected, 64 * PAGE);
	lr_session_close(live.session);
	CHECK_EQ(munmap(live.memory, live.length), 0);
	lr_image_close(live.opened);
	image_fini(&live.image);
	lr_image_close(ended.opened);
	image_fini(&ended.image);
}

/* Where a region was before it was given back, another one of the same session is moved to, and
 * made longer. */
static void moves_to_where_a_region_was(void)
{
	struct lr_session_options options = {
		.privilege = LR_PRIVILEGE_AUTO,
		.fault_mode = LR_FAULT_INLINE,
	};
	struct lazy lazy = {0};
	uint8_t *plain, *moved;

	image_init(&lazy.image, PAGE, PAGE);
	image_add(&lazy.image, "kept", 64 * PAGE, "zd");
	image_add(&lazy.image, "given", 64 * PAGE, "d");
	image_build(&lazy.image);
	image_publish(&lazy.image);
	lazy_start(&lazy, &options);
	plain = map_own(NULL, 64 * PAGE);
	CHECK_EQ(lr_session_attach(lazy.session, 1, plain, NULL), LR_OK);
	CHECK_EQ(lr_session_fill(lazy.session, NULL), LR_OK);
	CHECK_EQ(lr_session_wait(lazy.session, -1), LR_OK);
	map_own(plain, 64 * PAGE); /* over it: what is unmapped others may get */
	moved = mremap(lazy.memory + 32 * PAGE, 32 * PAGE, 48 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
		       plain);
	CHECK(moved == plain);
	check_zeros(moved + 32 * PAGE, 16 * PAGE);
	CHECK_MEM(moved, lazy.expected + 32 * PAGE, 32 * PAGE);
	CHECK_MEM(lazy.memory, lazy.expected, 32 * PAGE);
	munmap(moved, 48 * PAGE);
	lazy_close(&lazy);
}

static const struct check_case cases[] = {
	CHECK_CASE(fences_of_sessions_that_ended_are_signals),
	CHECK_CASE(moves_to_where_a_region_was),
};

CHECK_MAIN(cases)
