/* Attaching: memory of this process that another one restores, and what becomes of it when that one
 * ends. The services are real processes (attach_server.h), and are killed.
 */
#include "check.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <pthread.h>
#include <sched.h>
#include <sys/stat.h>

#include "attach_server.h"
#include "image_builder.h"

#define PAGE     4096u
#define PAGES    96u
#define DEADLINE 20000u

struct setting {
	struct image image;
	const char *folder;
	char socket[64];
	struct attach_server server;
	pid_t pid;
	lr_attachment *attachment;
	uint8_t *memory;
};

static void tidy(struct setting *set)
{
	unlink(set->socket);
	rmdir(set->folder);
	image_fini(&set->image);
}

static void set_up_image(struct setting *set)
{
	memset(set, 0, sizeof(*set));
	image_init(&set->image, PAGE, 16384);
	image_add(&set->image, "memory", PAGES * PAGE, "dddzdrhd");
	image_add(&set->image, "nothing", 0, "d");
	image_add(&set->image, "odd", 5 * PAGE + 77, "d");
	image_build(&set->image);
	image_publish(&set->image);
	/* Whoever is not root can open it too. */
	fchmod(set->image.fd, 0644);
	set->folder = attach_server_folder();
	snprintf(set->socket, sizeof(set->socket), "%s/s", set->folder);
	set->server.image = set->image.path;
	set->server.socket = set->socket;
	attach_server_prepare();
}

static void start_server(struct setting *set)
{
	set->pid = attach_server_start(&set->server);
}

static void kill_server(struct setting *set)
{
	attach_server_kill(set->pid);
}

static int try_attach(struct setting *set, uint32_t deadline_ms, struct lr_problem *problem)
{
	struct lr_attach_options options = {
		.privilege = LR_PRIVILEGE_AUTO,
		.deadline_ms = deadline_ms,
	};
	int code = lr_attach(set->socket, &options, &set->attachment, problem);

	if ((code == LR_ERR_PERMISSION || code == LR_ERR_UNSUPPORTED) && problem->os_error) {
		tidy(set);
		SKIP("no userfaultfd here: %s", strerror(problem->os_error));
	}
	if (code == LR_OK)
		set->memory = lr_attachment_get_address(set->attachment, 0);
	return code;
}

static void attach(struct setting *set, uint32_t deadline_ms)
{
	struct lr_problem problem = {0};
	int code = try_attach(set, deadline_ms, &problem);

	if (code != LR_OK)
		CHECK_FAIL("lr_attach: %s: %s: %s", lr_strerror(code), strerror(problem.os_error),
			   lr_attach_get_refusal(NULL));
	CHECK(set->memory != NULL);
}

static void set_up(struct setting *set, uint32_t deadline_ms)
{
	set_up_image(set);
	start_server(set);
	attach(set, deadline_ms);
}

static void check_region(const struct setting *set, uint32_t region)
{
	const struct image_region *expected = &set->image.regions[region];

	CHECK_MEM(lr_attachment_get_address(set->attachment, region), expected->bytes,
		  expected->length);
}

static void check_all(const struct setting *set)
{
	check_region(set, 0);
	check_region(set, 2);
}

static void tear_down(struct setting *set)
{
	lr_detach(set->attachment);
	tidy(set);
}

static void wait_for_state(const struct setting *set, uint32_t state)
{
	while (lr_attachment_get_state(set->attachment) != state)
		sched_yield();
}

/* ---- Served ---------------------------------------------------------------------------------- */

static void maps_all_regions(void)
{
	struct setting set;
	struct lr_attachment_info info;
	struct lr_region_info region;
	uint32_t number;

	set_up(&set, DEADLINE);
	CHECK_EQ(lr_attachment_get_region_count(set.attachment), 3);
	CHECK_EQ(lr_attachment_get_region(set.attachment, 2, &region), LR_OK);
	CHECK_STR(region.name, "odd");
	CHECK_EQ(region.name_bytes, 3);
	CHECK_EQ(region.length, 5 * PAGE + 77);
	CHECK_EQ(lr_attachment_get_region(set.attachment, 3, &region), LR_ERR_NOT_FOUND);
	CHECK_EQ(lr_attachment_find(set.attachment, "odd", &number), LR_OK);
	CHECK_EQ(number, 2);
	CHECK_EQ(lr_attachment_find(set.attachment, "od", &number), LR_ERR_NOT_FOUND);
	CHECK(lr_attachment_get_address(set.attachment, 1) == NULL);
	lr_attachment_get_info(set.attachment, &info);
	CHECK_EQ(info.region_count, 3);
	CHECK_EQ(info.page_size, PAGE);
	CHECK_EQ(info.cluster_size, 16384);
	CHECK_EQ(info.state, LR_ATTACHMENT_SERVED);
	check_all(&set);
	CHECK_EQ(lr_attachment_wait(set.attachment, 1000000), LR_ERR_TIMEOUT);
	tear_down(&set);
}

/* All of it comes, is ordinary memory then, and needs no service any more; children have it. */
static void becomes_ordinary_memory(void)
{
	struct setting set;
	pid_t child = 0;

	set_up_image(&set);
	set.server.does_fill = 1;
	start_server(&set);
	attach(&set, DEADLINE);
	set.memory[7] = 99;
	CHECK_EQ(lr_attachment_wait(set.attachment, -1), LR_OK);
	kill_server(&set);
	set.memory[7] = set.image.regions[0].bytes[7];
	check_all(&set);
#ifndef __SANITIZE_THREAD__ /* it misses the watcher, which has ended, in the child */
	child = check_fork(SIGSEGV);
	if (child == 0) {
		check_all(&set);
		CHECK_EQ(lr_attachment_get_state(set.attachment), LR_ATTACHMENT_COMPLETE);
		lr_detach(set.attachment);
		_exit(0);
	}
	CHECK_CHILD(child);
#endif
	(void)child;
	CHECK_EQ(lr_attachment_get_state(set.attachment), LR_ATTACHMENT_COMPLETE);
	tear_down(&set);
}

static void children_have_nothing_of_it(void)
{
	struct setting set;
	void *mapped;
	pid_t child;

	set_up(&set, DEADLINE);
	CHECK_EQ(set.memory[0], set.image.regions[0].bytes[0]);
	CHECK_SIGNAL(SIGSEGV, (void)*(volatile uint8_t *)set.memory;);
	CHECK_SIGNAL(SIGSEGV, (void)*(volatile uint8_t *)(set.memory + 80 * PAGE););
	child = check_fork(SIGSEGV);
	if (child == 0) {
		/* Nor does anything else come to lie where pointers still point to. */
		mapped = mmap(set.memory, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			      -1, 0);
		CHECK(mapped != set.memory);
		CHECK_EQ(lr_attachment_get_state(set.attachment), LR_ATTACHMENT_CLOSED);
		CHECK_EQ(lr_attachment_wait(set.attachment, -1), LR_ERR_CLOSED);
		lr_detach(set.attachment);
		_exit(0);
	}
	CHECK_CHILD(child);
	child = (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
	if (child == 0) {
		signal(SIGSEGV, SIG_DFL);
		_exit(*(volatile uint8_t *)(set.memory + PAGE) == 0);
	}
	check_died(child, SIGSEGV, __FILE__, __LINE__);
	check_all(&set);
	tear_down(&set);
}

/* What a program may do with its descriptors must not matter; and it has none of those. */
static void needs_no_descriptors(void)
{
	struct setting set;
	int uffds = 0;
	char link[64], name[64];

#ifdef __SANITIZE_THREAD__
	SKIP("the sanitizer takes two tables of descriptors for one");
#endif
	set_up(&set, DEADLINE);
	for (int fd = 3; fd < 64; fd++) {
		ssize_t got;

		snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
		got = readlink(link, name, sizeof(name) - 1);
		name[got > 0 ? got : 0] = '\0';
		uffds += strstr(name, "userfaultfd") != NULL;
	}
	if (syscall(SYS_close_range, 3, ~0u, 0) < 0)
		SKIP("no close_range here: %s", strerror(errno));
	CHECK_EQ(uffds, 0);
	check_region(&set, 0);
	kill_server(&set);
	start_server(&set);
	wait_for_state(&set, LR_ATTACHMENT_SERVED);
	check_all(&set);
	tear_down(&set);
}

static void takes_no_pages_that_were_there(void)
{
	struct setting set;

	set_up_image(&set);
	start_server(&set);
	if (mlockall(MCL_CURRENT | MCL_FUTURE) < 0) {
		tidy(&set);
		SKIP("mlockall: %s", strerror(errno));
	}
	attach(&set, DEADLINE);
	check_all(&set);
	tear_down(&set);
}

static void attach_without_rights(struct setting *set)
{
	struct lr_attach_options options = {.privilege = LR_PRIVILEGE_USER_MODE_ONLY};
	struct lr_attachment_info info;

	if (geteuid() == 0)
		CHECK_CALL(setuid(65534));
	CHECK_EQ(lr_attach(set->socket, &options, &set->attachment, NULL), LR_OK);
	lr_attachment_get_info(set->attachment, &info);
	CHECK_EQ(info.privilege, LR_PRIVILEGE_USER_MODE_ONLY);
	check_all(set);
	lr_detach(set->attachment);
}

static void serves_who_has_no_rights(void)
{
	struct setting set;
	pid_t child;

	set_up_image(&set);
	start_server(&set);
	child = check_fork(SIGSEGV);
	if (child == 0) {
		attach_without_rights(&set);
		_exit(0);
	}
	CHECK_CHILD(child);
	tidy(&set);
}

/* ---- Gone, and back -------------------------------------------------------------------------- */

static void next_service_goes_on(void)
{
	const struct image_region *expected;
	struct lr_attachment_info info;
	struct setting set;

	set_up(&set, DEADLINE);
	expected = &set.image.regions[0];
	set.memory[3] = 201;                                             /* loaded and written */
	CHECK_CALL(madvise(set.memory + 8 * PAGE, PAGE, MADV_DONTNEED)); /* never loaded */
	set.memory[16 * PAGE] = 7;
	CHECK_CALL(madvise(set.memory + 16 * PAGE, PAGE, MADV_DONTNEED)); /* loaded and written */
	kill_server(&set);
	start_server(&set);
	CHECK_EQ(set.memory[3], 201);
	for (uint32_t i = 0; i < PAGE; i++) {
		CHECK_EQ(set.memory[8 * PAGE + i], 0);
		CHECK_EQ(set.memory[16 * PAGE + i], 0);
	}
	CHECK_MEM(set.memory + 32 * PAGE, expected->bytes + 32 * PAGE, 64 * PAGE);
	wait_for_state(&set, LR_ATTACHMENT_SERVED);
	lr_attachment_get_info(set.attachment, &info);
	CHECK_EQ(info.resumes, 1);
	tear_down(&set);
}

struct toucher {
	pthread_t thread;
	volatile uint8_t *byte;
	_Atomic int thread_id;
	_Atomic int raised; /* -1: not yet */
	uint8_t value;
};

static void *touch(void *argument)
{
	struct toucher *toucher = argument;

	toucher->thread_id = (int)syscall(SYS_gettid);
	toucher->raised = check_touch(toucher->byte, 0);
	if (toucher->raised == 0)
		toucher->value = *toucher->byte;
	return NULL;
}

/* Until it sleeps in its fault. */
static void start_toucher(struct toucher *toucher, volatile uint8_t *byte)
{
	char path[64], text[64] = "";

	*toucher = (struct toucher){.byte = byte, .raised = -1};
	CHECK_EQ(pthread_create(&toucher->thread, NULL, touch, toucher), 0);
	while (!toucher->thread_id)
		sched_yield();
	snprintf(path, sizeof(path), "/proc/self/task/%d/wchan", toucher->thread_id);
	while (!strstr(text, "userfault") && toucher->raised < 0) {
		int file = open(path, O_RDONLY | O_CLOEXEC);
		ssize_t got;

		if (file < 0) /* it has ended */
			break;
		got = read(file, text, sizeof(text) - 1);

		close(file);
		if (got >= 0)
			text[got] = '\0';
		if (got <= 1) /* not told here */
			break;
		sched_yield();
	}
}

static void who_waits_is_served_by_the_next(void)
{
	struct setting set;
	struct toucher toucher;

	set_up(&set, DEADLINE);
	kill_server(&set);
	start_toucher(&toucher, set.memory + 40 * PAGE);
	start_server(&set);
	pthread_join(toucher.thread, NULL);
	CHECK_EQ(toucher.raised, 0);
	CHECK_EQ(toucher.value, set.image.regions[0].bytes[40 * PAGE]);
	check_all(&set);
	tear_down(&set);
}

/* Never zeros, and never a hang: those who wait, and those who come later. */
static void fences_when_nobody_comes(void)
{
	struct setting set;
	struct toucher toucher;
	uint64_t begin = 0;

	set_up(&set, 300);
	CHECK_MEM(set.memory, set.image.regions[0].bytes, 4 * PAGE);
	set.memory[1] = 77;
	CHECK_CALL(madvise(set.memory + 48 * PAGE, PAGE, MADV_DONTNEED));
	kill_server(&set);
	start_toucher(&toucher, set.memory + 40 * PAGE);
	pthread_join(toucher.thread, NULL);
	CHECK(toucher.raised == SIGBUS || toucher.raised == SIGSEGV);
	CHECK_EQ(lr_attachment_wait(set.attachment, -1), LR_ERR_GONE);
	CHECK_EQ(lr_attachment_get_state(set.attachment), LR_ATTACHMENT_FENCED);
	CHECK_EQ(set.memory[1], 77);
	CHECK_MEM(set.memory + 2, set.image.regions[0].bytes + 2, 4 * PAGE - 2);
	for (uint32_t page = 4; page < PAGES; page++)
		CHECK_EQ(check_touch(set.memory + page * PAGE, page & 1), toucher.raised);
	CHECK_EQ(check_touch(lr_attachment_get_address(set.attachment, 2), 0), toucher.raised);
	/* Giving up what was there is still possible, and is zeros. */
	CHECK_CALL(madvise(set.memory, PAGE, MADV_DONTNEED));
	for (uint32_t i = 0; i < PAGE; i++)
		begin |= set.memory[i];
	CHECK_EQ(begin, 0);
	tear_down(&set);
}

/* Also where it was moved to: he whose fault the service had read, and who comes later. */
static void fences_what_was_moved(void)
{
	struct setting set;
	struct toucher toucher;
	uint8_t *moved;

	set_up(&set, 300);
	CHECK_MEM(set.memory, set.image.regions[0].bytes, 4 * PAGE);
	moved = mmap(NULL, PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK(moved != MAP_FAILED);
	CHECK(mremap(set.memory, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, moved)
	      == moved);
	CHECK_MEM(moved + 4 * PAGE, set.image.regions[0].bytes + 4 * PAGE, 4 * PAGE);
	kill_server(&set);
	start_toucher(&toucher, moved + 40 * PAGE);
	CHECK_EQ(lr_attachment_wait(set.attachment, -1), LR_ERR_GONE);
	pthread_join(toucher.thread, NULL);
	CHECK(toucher.raised == SIGBUS || toucher.raised == SIGSEGV);
	CHECK_EQ(check_touch(moved + 41 * PAGE, 0), toucher.raised);
	CHECK_MEM(moved, set.image.regions[0].bytes, 4 * PAGE);
	CHECK_CALL(munmap(moved, PAGES * PAGE));
	tear_down(&set);
}

/* A service of another image does not count as the next one. */
static void does_not_go_on_with_another_image(void)
{
	struct setting set;
	struct image other;

	image_make(&other, PAGE, 16384, 3 * PAGE, "d");
	set_up(&set, 400);
	kill_server(&set);
	set.server.image = other.path;
	start_server(&set);
	CHECK_EQ(lr_attachment_wait(set.attachment, -1), LR_ERR_GONE);
	CHECK_NE(check_touch(set.memory + 40 * PAGE, 0), 0);
	image_fini(&other);
	tear_down(&set);
}

/* ---- Killed in the middle -------------------------------------------------------------------- */

struct attempt {
	struct setting *set;
	struct lr_problem problem;
	int code;
};

static void *attempt(void *argument)
{
	struct attempt *attempt = argument;

	attempt->code = try_attach(attempt->set, DEADLINE, &attempt->problem);
	return NULL;
}

static void killed_at(enum attach_step step)
{
	struct attempt trial;
	struct setting set;
	pthread_t thread;

	set_up_image(&set);
	set.server.die_at = step;
	start_server(&set);
	trial = (struct attempt){.set = &set};
	CHECK_EQ(pthread_create(&thread, NULL, attempt, &trial), 0);
	attach_server_wait(set.pid);
	set.server.die_at = ATTACH_NEVER;
	start_server(&set);
	pthread_join(thread, NULL);
	if (trial.code != LR_OK)
		CHECK_FAIL("killed at step %d: %s: %s", (int)step, lr_strerror(trial.code),
			   lr_attach_get_refusal(NULL));
	check_all(&set);
	kill_server(&set);
	tear_down(&set);
}

static void a_service_may_be_killed_at_any_step(void)
{
	for (enum attach_step step = ATTACH_ACCEPTED; step < ATTACH_STEPS; step++)
		killed_at(step);
}

/* With nobody after it: a failure within the deadline, or a fence. */
static void nobody_comes_after_it(void)
{
	for (enum attach_step step = ATTACH_ACCEPTED; step < ATTACH_STEPS; step++) {
		struct lr_problem problem = {0};
		struct setting set;
		int code;

		set_up_image(&set);
		set.server.die_at = step;
		start_server(&set);
		code = try_attach(&set, 200, &problem);
		if (code == LR_OK) {
			CHECK_EQ(step, ATTACH_ANSWERED);
			/* It may have been served before the end came, but not with zeros. */
			if (check_touch(set.memory, 0) == 0)
				CHECK_EQ(set.memory[0], set.image.regions[0].bytes[0]);
			lr_detach(set.attachment);
		} else {
			CHECK(code == LR_ERR_GONE || code == LR_ERR_TIMEOUT);
			CHECK_EQ(problem.code, code);
		}
		attach_server_wait(set.pid);
		tidy(&set);
	}
}

/* ---- What a service may say ------------------------------------------------------------------ */

static void check_answer(const void *says, size_t bytes, int does_close, int expected)
{
	struct lr_problem problem = {0};
	struct setting set;
	int code;

	set_up_image(&set);
	set.server.says = says;
	set.server.says_bytes = bytes;
	set.server.does_close = does_close;
	start_server(&set);
	code = try_attach(&set, 200, &problem);
	if (code != expected)
		CHECK_FAIL("got %s, expected %s", lr_error_name(code), lr_error_name(expected));
	CHECK_EQ(problem.code, expected);
	kill_server(&set);
	tidy(&set);
}

static void says_why_it_was_refused(void)
{
	static const char refusal[] = "LRREFUSE\7\0\0\0\12\0\0\0it\33ends\n\0.";
	uint32_t code = 0;

	check_answer(refusal, sizeof(refusal) - 1, 1, LR_ERR_REFUSED);
	CHECK_STR(lr_attach_get_refusal(&code), "it ends  .");
	CHECK_EQ(code, LR_REFUSAL_STOPPING);
	CHECK_EQ(lr_attach("", NULL, &(lr_attachment *){NULL}, NULL), LR_ERR_ARGUMENT);
	CHECK_STR(lr_attach_get_refusal(NULL), "");
}

static void takes_no_nonsense(void)
{
	static const char version[] = "LRREGION\2\0\0\0\1\0\0\0";
	static const char endless[] = "LRREFUSE\1\0\0\0\377\377\377\377";
	struct {
		char magic[8];
		uint32_t version, regions, page_size, cluster_size;
		uint64_t names_bytes;
		char digest[32];
		uint64_t address, length;
		uint32_t protection, name_bytes;
		uint64_t name_offset;
		char names[8];
	} table = {"LRREGION", 1, 1, PAGE, PAGE, 8, "", 0, PAGE, 3, 8, 0, "the_name"}, bad;

	check_answer("HTTP/1.1 400 Bad Request\r\n\r\n", 28, 0, LR_ERR_PROTOCOL);
	check_answer(version, sizeof(version) - 1, 0, LR_ERR_PROTOCOL);
	check_answer(endless, sizeof(endless) - 1, 0, LR_ERR_PROTOCOL);
	check_answer(&table, sizeof(table) - 4, 0, LR_ERR_TIMEOUT);
	check_answer(&table, sizeof(table) - 4, 1, LR_ERR_GONE);
	/* The table is sound, but then nothing comes. */
	check_answer(&table, sizeof(table), 0, LR_ERR_TIMEOUT);
	bad = table, bad.regions = 1u << 31;
	check_answer(&bad, sizeof(bad), 0, LR_ERR_PROTOCOL);
	bad = table, bad.names_bytes = UINT64_MAX;
	check_answer(&bad, sizeof(bad), 0, LR_ERR_PROTOCOL);
	bad = table, bad.page_size = 0;
	check_answer(&bad, sizeof(bad), 0, LR_ERR_PROTOCOL);
	bad = table, bad.name_offset = 1;
	check_answer(&bad, sizeof(bad), 0, LR_ERR_PROTOCOL);
	bad = table, bad.name_offset = UINT64_MAX;
	check_answer(&bad, sizeof(bad), 0, LR_ERR_PROTOCOL);
	bad = table, bad.length = UINT64_MAX;
	check_answer(&bad, sizeof(bad), 0, LR_ERR_PROTOCOL);
	check_answer("", 0, 0, LR_ERR_TIMEOUT);
}

/* While it has no table yet, or has no more than a part of one. */
static void other_threads_may_fork_meanwhile(void)
{
	static const char part[] = "LRREGION\1\0\0\0\3\0\0\0\0\20\0\0\0\20\0\0\10\0\0\0\0\0\0\0"
				   "01234567890123456789012345678901";
	struct attempt trial;
	struct setting set;
	pthread_t thread;

	set_up_image(&set);
	trial = (struct attempt){.set = &set};
	set.server.says = part;
	set.server.says_bytes = sizeof(part) - 1;
	set.server.does_close = 1;
	start_server(&set);
	CHECK_EQ(pthread_create(&thread, NULL, attempt, &trial), 0);
	for (int i = 0; i < 100; i++) {
		pid_t child;

		poll(NULL, 0, 2);
		child = check_fork(SIGSEGV);
		if (child == 0)
			_exit(0);
		CHECK_CHILD(child);
	}
	kill_server(&set);
	set.server.says = NULL;
	start_server(&set);
	pthread_join(thread, NULL);
	CHECK_EQ(trial.code, LR_OK);
	check_all(&set);
	tear_down(&set);
}

static void waits_for_a_service_that_is_late(void)
{
	struct attempt trial;
	struct setting set;
	pthread_t thread;

	set_up_image(&set);
	CHECK_EQ(try_attach(&set, 50, &trial.problem), LR_ERR_NOT_FOUND);
	CHECK_EQ(trial.problem.os_error, ENOENT);
	trial = (struct attempt){.set = &set};
	CHECK_EQ(pthread_create(&thread, NULL, attempt, &trial), 0);
	poll(NULL, 0, 60);
	start_server(&set);
	pthread_join(thread, NULL);
	CHECK_EQ(trial.code, LR_OK);
	check_all(&set);
	tear_down(&set);
}

/* ---- Detaching ------------------------------------------------------------------------------- */

static void detaches_while_nobody_serves(void)
{
	struct setting set;

	set_up(&set, 600000);
	CHECK_EQ(set.memory[0], set.image.regions[0].bytes[0]);
	kill_server(&set);
	wait_for_state(&set, LR_ATTACHMENT_RESUMING);
	tear_down(&set);
}

static void detaches_from_a_service_that_hangs(void)
{
	struct setting set;

	set_up(&set, 200);
	CHECK_CALL(kill(set.pid, SIGSTOP));
	tear_down(&set);
}

/* The address is used again at once, by memory that another pager serves: what the first service
 * is about to put there must not come. */
static void nothing_comes_late(void)
{
	struct setting set;
	struct image other;
	lr_image *opened;
	lr_session *session;

	set_up_image(&set);
	set.server.does_fill = 1;
	start_server(&set);
	image_make(&other, PAGE, 16384, PAGES * PAGE, "r");
	CHECK_EQ(lr_image_open(other.path, &opened, NULL), LR_OK);
	for (int turn = 0; turn < 40; turn++) {
		struct lr_session_options options = {.privilege = LR_PRIVILEGE_AUTO};
		void *memory, *wanted;

		attach(&set, DEADLINE);
		wanted = set.memory;
		CHECK_EQ(set.memory[(uint32_t)turn * PAGE],
			 set.image.regions[0].bytes[(uint32_t)turn * PAGE]);
		lr_detach(set.attachment);
		memory = mmap(wanted, PAGES * PAGE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		CHECK(memory == wanted);
		CHECK_EQ(lr_session_open(opened, &options, &session, NULL), LR_OK);
		CHECK_EQ(lr_session_attach(session, 0, memory, NULL), LR_OK);
		CHECK_MEM(memory, other.regions[0].bytes, PAGES * PAGE);
		lr_session_close(session);
		munmap(memory, PAGES * PAGE);
	}
	lr_image_close(opened);
	image_fini(&other);
	tidy(&set);
}

static void serves_memory_of_the_callers(void)
{
	struct lr_attach_options options = {.privilege = LR_PRIVILEGE_AUTO};
	struct setting set;
	uint8_t *memory[3];

	set_up_image(&set);
	start_server(&set);
	CHECK_EQ(lr_attach_connect(set.socket, &options, &set.attachment, NULL), LR_OK);
	for (uint32_t i = 0; i < 3; i += 2) {
		uint64_t length = set.image.regions[i].length;

		memory[i] = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
				 -1, 0);
		CHECK(memory[i] != MAP_FAILED);
		CHECK_EQ(lr_attachment_add(set.attachment, i, memory[i] + 1, NULL),
			 LR_ERR_ARGUMENT);
		CHECK_EQ(lr_attachment_add(set.attachment, i, memory[i], NULL), LR_OK);
		CHECK_EQ(lr_attachment_add(set.attachment, i, memory[i], NULL), LR_ERR_ARGUMENT);
	}
	CHECK_EQ(lr_attachment_add(set.attachment, 1, memory[0], NULL), LR_ERR_ARGUMENT);
	CHECK_EQ(lr_attachment_add(set.attachment, 3, memory[0], NULL), LR_ERR_NOT_FOUND);
	CHECK_EQ(lr_attachment_start(set.attachment, NULL), LR_OK);
	CHECK_EQ(lr_attachment_start(set.attachment, NULL), LR_ERR_ARGUMENT);
	check_all(&set);
	CHECK_EQ(lr_attachment_forget(set.attachment, 0), LR_OK);
	CHECK_CALL(munmap(memory[0], set.image.regions[0].length));
	CHECK_EQ(lr_attachment_release(set.attachment, 0), LR_ERR_CLOSED);
	CHECK_EQ(lr_attachment_release(set.attachment, 2), LR_OK);
	CHECK_EQ(check_touch(memory[2], 0), SIGSEGV);
	lr_detach(set.attachment);
	CHECK_EQ(check_touch(memory[2], 0), SIGSEGV);
	CHECK_CALL(munmap(memory[2], set.image.regions[2].length));
	tidy(&set);
}

static const struct check_case cases[] = {
	CHECK_CASE(maps_all_regions),
	CHECK_CASE(becomes_ordinary_memory),
	CHECK_CASE(children_have_nothing_of_it),
	CHECK_CASE(needs_no_descriptors),
	CHECK_CASE(takes_no_pages_that_were_there),
	CHECK_CASE(serves_who_has_no_rights),
	CHECK_CASE(next_service_goes_on),
	CHECK_CASE(who_waits_is_served_by_the_next),
	CHECK_CASE(fences_when_nobody_comes),
	CHECK_CASE(fences_what_was_moved),
	CHECK_CASE(does_not_go_on_with_another_image),
	CHECK_CASE_LIMIT(a_service_may_be_killed_at_any_step, 60),
	CHECK_CASE(nobody_comes_after_it),
	CHECK_CASE(says_why_it_was_refused),
	CHECK_CASE(takes_no_nonsense),
	CHECK_CASE(other_threads_may_fork_meanwhile),
	CHECK_CASE(waits_for_a_service_that_is_late),
	CHECK_CASE(detaches_while_nobody_serves),
	CHECK_CASE(detaches_from_a_service_that_hangs),
	CHECK_CASE_LIMIT(nothing_comes_late, 60),
	CHECK_CASE(serves_memory_of_the_callers),
};
CHECK_MAIN(cases)
