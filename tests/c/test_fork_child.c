/*
 * What a forked child reads where its parent had pages to come: right bytes by every fork() of C's,
 * while other threads are wherever they may be; and a signal where no handler of ours ran.
 */
#include "check.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <stdbool.h>

#include "image_builder.h"

#if defined(__SANITIZE_THREAD__)
#define NEEDS_CHILD_THREADS() SKIP("ThreadSanitizer allows no new thread in a forked child")
#else
#define NEEDS_CHILD_THREADS() ((void)0)
#endif

#if CHECK_SANITIZER_FACTOR > 1
#define NEEDS_FORK_AMID_MALLOC()                                                                   \
	SKIP("a sanitizer's malloc is not made for fork() amid that of other threads")
#else
#define NEEDS_FORK_AMID_MALLOC() ((void)0)
#endif

#define PAGE   4096
#define LENGTH 2000000 /* ends within a page, and within a cluster */
#define PAGES  ((LENGTH + PAGE - 1) / PAGE)

extern char **environ;

static struct image image;
static lr_image *opened;
static lr_session *session;
static uint8_t *memory;

static lr_session *restore(bool fill, uint8_t **ret_memory)
{
	struct lr_session_options options = {.privilege = LR_PRIVILEGE_AUTO};
	struct lr_problem problem;
	lr_session *made;
	void *mapped;

	if (lr_session_open(opened, &options, &made, &problem) < 0)
		SKIP("no userfaultfd here: %s", strerror(problem.os_error));
	CHECK_EQ(lr_session_map(made, 0, &mapped, &problem), LR_OK);
	if (fill)
		CHECK_EQ(lr_session_fill(made, NULL), LR_OK);
	*ret_memory = mapped;
	return made;
}

static void set_up(bool fill)
{
	image_make(&image, PAGE, 16384, LENGTH, "drzhdddr");
	CHECK_EQ(lr_image_open(image.path, &opened, NULL), LR_OK);
	session = restore(fill, &memory);
}

static void tear_down(void)
{
	CHECK_MEM(memory, image.regions[0].bytes, LENGTH);
	lr_session_close(session);
	lr_image_close(opened);
	image_fini(&image);
}

/* Look at so many pages, in an order of chance. */
static void look(const uint8_t *at, uint64_t seed, int pages)
{
	uint64_t state = seed + 1;

	for (int i = 0; i < pages; i++) {
		uint64_t offset = image_random(&state) % (LENGTH - PAGE);

		CHECK_MEM(at + offset, image.regions[0].bytes + offset, PAGE);
	}
}

static void child_reads_everything(void)
{
	NEEDS_FORK_AMID_MALLOC();
	set_up(false);
	look(memory, 1, 3);
	pid_t pid = fork();

	CHECK(pid != -1);
	if (pid == 0) {
		look(memory, 2, 100);
		CHECK_MEM(memory, image.regions[0].bytes, LENGTH);
		_exit(0);
	}
	look(memory, 3, 100);
	CHECK_CHILD(pid);
	tear_down();
}

static void descend(int generation)
{
	pid_t pid = fork();

	CHECK(pid != -1);
	if (pid == 0) {
		look(memory, (uint64_t)generation, 10);
		memory[generation] = (uint8_t)generation; /* its own copy */
		if (generation < 8)
			descend(generation + 1);
		CHECK_EQ(memory[generation], generation);
		memory[generation] = image.regions[0].bytes[generation];
		for (int i = 1; i < generation; i++)
			memory[i] = image.regions[0].bytes[i];
		CHECK_MEM(memory, image.regions[0].bytes, LENGTH);
		_exit(0);
	}
	CHECK_CHILD(pid);
}

static void eight_generations(void)
{
	NEEDS_FORK_AMID_MALLOC();
	set_up(true);
	descend(1);
	tear_down();
}

/* ---- No handlers ------------------------------------------------------------------------- */

static void raw_clone_gets_a_signal(void)
{
	set_up(false);
	CHECK_EQ(memory[0], image.regions[0].bytes[0]);
	for (uint64_t offset = 0; offset < LENGTH; offset += 100 * PAGE) {
		long pid = syscall(SYS_clone, (long)SIGCHLD, 0L, 0L, 0L, 0L);

		CHECK(pid != -1);
		if (pid == 0) {
			struct rlimit none = {0, 0};

			setrlimit(RLIMIT_CORE, &none);
			signal(SIGSEGV, SIG_DFL);
			(void)*(volatile uint8_t *)(memory + offset);
			_exit(0);
		}
		check_died((pid_t)pid, SIGSEGV, __FILE__, __LINE__);
	}
	tear_down();
}

/* A child by vfork shares the memory, and so its parent's pager. */
static void vfork_and_spawn_are_served_by_the_parent(void)
{
	char *arguments[] = {"true", NULL};
	pid_t pid;

	NEEDS_CHILD_THREADS(); /* it makes a fork of a vfork */
	set_up(false);
	for (uint64_t page = 3; page < PAGES - 1; page += 50) {
		const volatile uint8_t *at = memory + page * PAGE;
		uint8_t expected = image.regions[0].bytes[page * PAGE];

		pid = vfork();
		CHECK(pid != -1);
		if (pid == 0)
			_exit(*at == expected ? 0 : 1);
		CHECK_CHILD(pid);
	}
	CHECK_EQ(posix_spawnp(&pid, "true", NULL, NULL, arguments, environ), 0);
	CHECK_CHILD(pid);
	tear_down();
}

/* ---- A fence, and a child of who has one -------------------------------------------------- */

static void a_fence_holds_in_a_child(void)
{
	struct lr_session_options options = {.privilege = LR_PRIVILEGE_AUTO};
	lr_session *other;
	void *own;

	NEEDS_FORK_AMID_MALLOC();
	set_up(false);
	own = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK(own != MAP_FAILED);
	CHECK_EQ(lr_session_open(opened, &options, &other, NULL), LR_OK);
	CHECK_EQ(lr_session_attach(other, 0, own, NULL), LR_OK);
	CHECK_EQ(*(uint8_t *)own, image.regions[0].bytes[0]);
	lr_session_close(other); /* what is missing is fenced from now on */
	int fence = check_touch((uint8_t *)own + 1000000, 0);

	CHECK(fence == SIGBUS || fence == SIGSEGV);
	pid_t pid = fork();

	CHECK(pid != -1);
	if (pid == 0) {
		int raised = check_touch((uint8_t *)own + 1000000, 0);

		CHECK(raised == SIGBUS || raised == SIGSEGV);
		raised = check_touch((uint8_t *)own + LENGTH - 1, 1);
		CHECK(raised == SIGBUS || raised == SIGSEGV);
		_exit(0);
	}
	CHECK_CHILD(pid);
	munmap(own, LENGTH);
	tear_down();
}

/* ---- Other threads, wherever they are ----------------------------------------------------- */

static atomic_int over;

struct writer {
	FILE *file;
	atomic_int rounds;
};

/* Write lazy memory to a stream: pages come while the stream's lock is held. */
static void *write_lazy(void *argument)
{
	struct writer *writer = argument;

	while (!atomic_load(&over)) {
		uint8_t *lazy;
		lr_session *own = restore(false, &lazy);

		rewind(writer->file);
		/* Small pieces go through the stream's buffer, large ones straight to write(2). */
		for (uint64_t offset = 0; offset < LENGTH / 2; offset += 1000)
			CHECK_EQ(fwrite(lazy + offset, 1000, 1, writer->file), 1);
		CHECK_EQ(fwrite(lazy + LENGTH / 2, LENGTH / 2, 1, writer->file), 1);
		lr_session_close(own);
		atomic_fetch_add(&writer->rounds, 1);
	}
	return NULL;
}

static void *flush_all(void *argument)
{
	while (!atomic_load(&over))
		CHECK_EQ(fflush(NULL), 0);
	return argument;
}

/* One thread in fwrite(lazy) waits for a page and has the stream's lock; one in fflush(NULL) has
 * the list of streams and waits for that lock; fork() wants the list. Whoever stops the pager for
 * a fork ends here. */
static void fork_amid_fwrite_and_fflush(void)
{
	NEEDS_FORK_AMID_MALLOC();
	struct writer writer = {.file = tmpfile()};
	pthread_t threads[3];

	set_up(false);
	CHECK(writer.file != NULL);
	CHECK_EQ(pthread_create(&threads[0], NULL, write_lazy, &writer), 0);
	CHECK_EQ(pthread_create(&threads[1], NULL, flush_all, NULL), 0);
	CHECK_EQ(pthread_create(&threads[2], NULL, flush_all, NULL), 0);
	for (int i = 0; i < 150 || atomic_load(&writer.rounds) < 20; i++) {
		pid_t pid = fork();

		CHECK(pid != -1);
		if (pid == 0) {
			look(memory, (uint64_t)i, 5);
			_exit(0);
		}
		CHECK_CHILD(pid);
	}
	atomic_store(&over, 1);
	for (int i = 0; i < 3; i++)
		CHECK_EQ(pthread_join(threads[i], NULL), 0);
	/* What came out is the image, whole. */
	uint8_t *back = malloc(LENGTH);

	rewind(writer.file);
	CHECK_EQ(fread(back, LENGTH / 2, 1, writer.file), 1);
	CHECK_MEM(back, image.regions[0].bytes, LENGTH / 2);
	free(back);
	fclose(writer.file);
	tear_down();
}

static void *allocate_some(void *argument)
{
	(void)argument;
	return malloc(1000);
}

static void *start_threads(void *argument)
{
	pthread_t thread;

	while (!atomic_load(&over)) {
		CHECK_EQ(pthread_create(&thread, NULL, allocate_some, NULL), 0);
		void *copy;

		CHECK_EQ(pthread_join(thread, &copy), 0);
		free(copy);
	}
	return argument;
}

static void *load_libraries(void *argument)
{
	const char *names[] = {"libutil.so.1", "libresolv.so.2", "libanl.so.1"};

	while (!atomic_load(&over))
		for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
			void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);

			if (library)
				dlclose(library);
		}
	return argument;
}

static void *allocate(void *argument)
{
	uint64_t state = 5;

	while (!atomic_load(&over)) {
		void *block[50];

		for (int i = 0; i < 50; i++)
			block[i] = malloc(image_random(&state) % 200000 + 1);
		for (int i = 0; i < 50; i++)
			free(block[i]);
	}
	return argument;
}

/* Whatever lock of libc's another thread holds, the child's pager starts, and serves. */
static void fork_amid_threads_libraries_and_malloc(void)
{
	void *(*work[])(void *) = {start_threads, load_libraries, allocate};
	pthread_t threads[3];

	NEEDS_FORK_AMID_MALLOC();
	set_up(false);
	for (int i = 0; i < 3; i++)
		CHECK_EQ(pthread_create(&threads[i], NULL, work[i], NULL), 0);
	for (int i = 0; i < 200; i++) {
		pid_t pid = fork();

		CHECK(pid != -1);
		if (pid == 0) {
			free(malloc(100000));
			look(memory, (uint64_t)i, 5);
			_exit(0);
		}
		CHECK_CHILD(pid);
	}
	atomic_store(&over, 1);
	for (int i = 0; i < 3; i++)
		CHECK_EQ(pthread_join(threads[i], NULL), 0);
	tear_down();
}

static void *give_up_and_populate(void *argument)
{
	uint8_t *scratch;
	lr_session *own = restore(false, &scratch);
	uint64_t state = 9, done;

	for (uint64_t round = 1; !atomic_load(&over); round++) {
		uint64_t page = image_random(&state) % (PAGES - 20);
		uint64_t pages = image_random(&state) % 20 + 1;

		if (round % 2)
			CHECK_CALL(madvise(scratch + page * PAGE, pages * PAGE, MADV_DONTNEED));
		else
			CHECK_EQ(lr_session_populate(own, 0, page * PAGE, pages * PAGE, -1, &done,
						     NULL),
				 LR_OK);
		if (round % 200 == 0) {
			lr_session_close(own);
			own = restore(round % 400 == 0, &scratch);
		}
	}
	lr_session_close(own);
	return argument;
}

static void *fork_often(void *argument)
{
	uint64_t seed = (uint64_t)(uintptr_t)argument;

	for (uint64_t i = 0; i < 30; i++) {
		pid_t pid = fork();

		CHECK(pid != -1);
		if (pid == 0) {
			look(memory, seed * 1000 + i, 20);
			if (i % 3 == 0) {
				lr_session_close(session);
				uint8_t *again;
				lr_session *own = restore(false, &again);

				look(again, seed + i, 3);
				lr_session_close(own);
			}
			_exit(0);
		}
		CHECK_CHILD(pid);
	}
	return argument;
}

static void forks_from_threads_amid_everything(void)
{
	pthread_t workers[2], forkers[4];

	NEEDS_FORK_AMID_MALLOC();
	set_up(true);
	for (int i = 0; i < 2; i++)
		CHECK_EQ(pthread_create(&workers[i], NULL, give_up_and_populate, NULL), 0);
	for (uintptr_t i = 0; i < 4; i++)
		CHECK_EQ(pthread_create(&forkers[i], NULL, fork_often, (void *)i), 0);
	look(memory, 77, 300);
	for (int i = 0; i < 4; i++)
		CHECK_EQ(pthread_join(forkers[i], NULL), 0);
	atomic_store(&over, 1);
	for (int i = 0; i < 2; i++)
		CHECK_EQ(pthread_join(workers[i], NULL), 0);
	tear_down();
}

static const struct check_case cases[] = {
	CHECK_CASE(child_reads_everything),
	CHECK_CASE(eight_generations),
	CHECK_CASE(raw_clone_gets_a_signal),
	CHECK_CASE(vfork_and_spawn_are_served_by_the_parent),
	CHECK_CASE(a_fence_holds_in_a_child),
	CHECK_CASE_LIMIT(fork_amid_fwrite_and_fflush, 120),
	CHECK_CASE_LIMIT(fork_amid_threads_libraries_and_malloc, 120),
	CHECK_CASE_LIMIT(forks_from_threads_amid_everything, 120),
};
CHECK_MAIN(cases)
