/* fork() with sessions open: a child has them too, and pages of its own to come. */
#include "check.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>

#include "image_builder.h"

static struct image image;
static lr_image *opened;
static lr_session *session;
static uint8_t *memory;

static void set_up(void)
{
	struct lr_session_options options = {.privilege = LR_PRIVILEGE_AUTO};
	struct lr_problem problem;
	void *mapped;

	image_make(&image, 4096, 65536, 4000000, "drz");
	CHECK_EQ(lr_image_open(image.path, &opened, NULL), LR_OK);
	if (lr_session_open(opened, &options, &session, &problem) < 0)
		SKIP("no userfaultfd here: %s", strerror(problem.os_error));
	CHECK_EQ(lr_session_map(session, 0, &mapped, NULL), LR_OK);
	memory = mapped;
}

static void tear_down(void)
{
	CHECK_MEM(memory, image.regions[0].bytes, 4000000);
	lr_session_close(session);
	lr_image_close(opened);
	image_fini(&image);
}

#define SHORT_OF_SANITIZERS                                                                        \
	if (CHECK_SANITIZER_FACTOR != 1)                                                           \
	SKIP("a sanitizer allows no new thread in a child of many threads")

static void compare_and_exit(void)
{
	CHECK_MEM(memory, image.regions[0].bytes, 4000000);
	_exit(0);
}

/* Some pages came in the parent, some are written to there, the rest comes in the child. */
static void child_reads_what_the_parent_did_not_load(void)
{
	SHORT_OF_SANITIZERS;
	set_up();
	CHECK_EQ(memory[0], image.regions[0].bytes[0]);
	memory[1000000] ^= 1;
	pid_t pid = fork();

	CHECK(pid != -1);
	if (pid == 0) {
		memory[1000000] ^= 1;
		compare_and_exit();
	}
	memory[1000000] ^= 1;
	CHECK_CHILD(pid);
	tear_down();
}

static void child_lives_longer_than_its_parent(void)
{
	int pipe_ends[2];
	char byte;

	SHORT_OF_SANITIZERS;
	CHECK_CALL(pipe(pipe_ends));
	set_up();
	pid_t pid = fork();

	CHECK(pid != -1);
	if (pid == 0) {
		pid_t parent = getpid(), grandchild = fork();

		CHECK(grandchild != -1);
		if (grandchild != 0)
			_exit(0);
		/* After its parent's end. */
		while (getppid() == parent)
			usleep(1000);
		CHECK_MEM(memory, image.regions[0].bytes, 4000000);
		CHECK_EQ(write(pipe_ends[1], "x", 1), 1);
		_exit(0);
	}
	CHECK_CHILD(pid);
	lr_session_close(session);
	close(pipe_ends[1]);
	CHECK_EQ(read(pipe_ends[0], &byte, 1), 1);
	lr_image_close(opened);
	image_fini(&image);
}

/* The child's session is one like its parent's. */
static void child_may_call_everything(void)
{
	SHORT_OF_SANITIZERS;
	set_up();
	pid_t pid = fork();

	CHECK(pid != -1);
	if (pid == 0) {
		struct lr_session_stats stats;
		uint64_t done;
		void *mapped;
		lr_session *own;
		struct lr_session_options options = {.privilege = LR_PRIVILEGE_AUTO};

		CHECK_EQ(lr_session_wait(session, 0), LR_ERR_ARGUMENT);
		CHECK_EQ(lr_session_populate(session, 0, 0, 100000, -1, &done, NULL), LR_OK);
		CHECK_EQ(done, 100000);
		lr_session_get_stats(session, &stats);
		CHECK_EQ(stats.faults, 0);
		CHECK(stats.pages_copied > 0);
		CHECK_EQ(stats.regions_attached, 1);
		CHECK_EQ(lr_session_suspend(session, 0), LR_OK);
		CHECK_EQ(lr_session_resume(session, 0), LR_OK);
		CHECK_MEM(memory, image.regions[0].bytes, 4000000);
		CHECK_EQ(lr_session_open(opened, &options, &own, NULL), LR_OK);
		CHECK_EQ(lr_session_map(own, 0, &mapped, NULL), LR_OK);
		CHECK_MEM(mapped, image.regions[0].bytes, 4000000);
		lr_session_close(own);
		lr_session_close(session);
		CHECK_SIGNAL(SIGSEGV, (void)*(volatile uint8_t *)memory;);
		lr_image_close(opened);
		_exit(0);
	}
	CHECK_CHILD(pid);
	tear_down();
}

/* Without descriptors it can get no userfaultfd: what is there can be read, the rest not. */
static void child_without_descriptors_gets_a_signal(void)
{
	SHORT_OF_SANITIZERS;
	set_up();
	CHECK_EQ(memory[0], image.regions[0].bytes[0]);
	struct lr_session_stats stats;
	struct rlimit limit, none;

	/* The pager has noted that page by then: what it has not, the child may not touch. */
	lr_session_get_stats(session, &stats);
	CHECK_CALL(getrlimit(RLIMIT_NOFILE, &limit));
	none = limit;
	none.rlim_cur = 0;
	CHECK_CALL(setrlimit(RLIMIT_NOFILE, &none));
	pid_t pid = fork();

	if (pid == 0) {
		CHECK_CALL(setrlimit(RLIMIT_NOFILE, &limit));
		CHECK_EQ(memory[0], image.regions[0].bytes[0]);
		CHECK_SIGNAL(SIGSEGV, (void)*(volatile uint8_t *)(memory + 2000000););
		CHECK_SIGNAL(SIGSEGV, (void)*(volatile uint8_t *)(memory + 3999999););
		CHECK_EQ(lr_session_suspend(session, 0), LR_ERR_CLOSED);
		_exit(0);
	}
	CHECK_CALL(setrlimit(RLIMIT_NOFILE, &limit));
	CHECK(pid != -1);
	CHECK_CHILD(pid);
	tear_down();
}

/* A child that no handler of fork() saw finds nothing there, not zeros. */
static void bare_clone_gets_a_signal(void)
{
	set_up();
	CHECK_EQ(memory[0], image.regions[0].bytes[0]);
	long pid = syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);

	CHECK(pid != -1);
	if (pid == 0) {
		signal(SIGSEGV, SIG_DFL);
		_exit(memory[0] == 0);
	}
	int status;

	CHECK_EQ(waitpid((pid_t)pid, &status, 0), pid);
	CHECK(WIFSIGNALED(status));
	CHECK_EQ(WTERMSIG(status), SIGSEGV);
	tear_down();
}

static void *touch_all(void *argument)
{
	uint64_t *wrong = argument;

	for (int round = 0; round < 3; round++)
		for (uint64_t offset = 0; offset < 4000000; offset += 4096)
			/* But for what is given up meanwhile. */
			if (offset < 4000000 / 2 / 4096 * 4096)
				*wrong += memory[offset] != image.regions[0].bytes[offset];
	return NULL;
}

/* Sessions that come and go while others fork: no deadlock, in parent or child. */
static void *open_and_close(void *argument)
{
	struct lr_session_options options = {.privilege = LR_PRIVILEGE_AUTO};
	atomic_int *stop = argument;

	while (!atomic_load(stop)) {
		lr_session *other;
		void *mapped;

		CHECK_EQ(lr_session_open(opened, &options, &other, NULL), LR_OK);
		CHECK_EQ(lr_session_map(other, 0, &mapped, NULL), LR_OK);
		CHECK_EQ(*(uint8_t *)mapped, image.regions[0].bytes[0]);
		lr_session_close(other);
	}
	return NULL;
}

static void *give_up_and_move(void *argument)
{
	atomic_int *stop = argument;
	uint8_t *place = memory + 4000000 / 2 / 4096 * 4096;

	while (!atomic_load(stop))
		CHECK_CALL(madvise(place, 5 * 4096, MADV_DONTNEED));
	return NULL;
}

static void forks_amid_faults_and_sessions(void)
{
	pthread_t toucher, opener, giver;
	uint64_t wrong = 0, kept = 4000000 / 2 / 4096 * 4096;
	atomic_int stop = 0;

	SHORT_OF_SANITIZERS;
	set_up();
	CHECK_EQ(pthread_create(&toucher, NULL, touch_all, &wrong), 0);
	CHECK_EQ(pthread_create(&opener, NULL, open_and_close, &stop), 0);
	CHECK_EQ(pthread_create(&giver, NULL, give_up_and_move, &stop), 0);
	for (int i = 0; i < 100; i++) {
		pid_t pid = fork();

		CHECK(pid != -1);
		if (pid == 0) {
			CHECK_MEM(memory, image.regions[0].bytes, kept);
			_exit(0);
		}
		CHECK_CHILD(pid);
	}
	CHECK_EQ(pthread_join(toucher, NULL), 0);
	atomic_store(&stop, 1);
	CHECK_EQ(pthread_join(opener, NULL), 0);
	CHECK_EQ(pthread_join(giver, NULL), 0);
	CHECK_EQ(wrong, 0);
	CHECK_CALL(madvise(memory + kept, 5 * 4096, MADV_DONTNEED));
	memcpy(memory + kept, image.regions[0].bytes + kept, 5 * 4096);
	tear_down();
}

struct giver {
	_Atomic unsigned given; /* so many pages, from the first on */
	atomic_int stop;
};

static void *give_up_one_by_one(void *argument)
{
	struct giver *giver = argument;

	for (unsigned page = 0; page < 4000000 / 4096 && !atomic_load(&giver->stop); page++) {
		CHECK_CALL(madvise(memory + page * 4096u, 4096, MADV_DONTNEED));
		atomic_store(&giver->given, page + 1);
	}
	return NULL;
}

/* What the child's own memory says was given up must be so in the child: nothing of it was loaded,
 * so that only the pager's knowledge is between zeros and the image's bytes. */
static void child_knows_what_others_gave_up(void)
{
	SHORT_OF_SANITIZERS;
	for (int round = 0; round < 12; round++) {
		struct giver giver = {0};
		pthread_t thread;

		set_up();
		CHECK_EQ(pthread_create(&thread, NULL, give_up_one_by_one, &giver), 0);
		for (int i = 0; i < 5; i++) {
			pid_t pid = fork();

			CHECK(pid != -1);
			if (pid == 0) {
				for (unsigned page = atomic_load(&giver.given); page-- > 0;)
					CHECK_EQ(memory[page * 4096u], 0);
				_exit(0);
			}
			CHECK_CHILD(pid);
		}
		atomic_store(&giver.stop, 1);
		CHECK_EQ(pthread_join(thread, NULL), 0);
		lr_session_close(session);
		lr_image_close(opened);
		image_fini(&image);
	}
}

struct cuckoo {
	_Atomic unsigned laid; /* so many pages, from the first on, are somebody else's */
	atomic_int stop;
};

static void *unmap_one_by_one(void *argument)
{
	struct cuckoo *cuckoo = argument;

	for (unsigned page = 0; page < 4000000 / 4096 && !atomic_load(&cuckoo->stop); page++)
		CHECK_CALL(munmap(memory + page * 4096u, 4096));
	return NULL;
}

/* Takes each place as soon as the kernel has it free: its unmapping need not have been read. */
static void *lay(void *argument)
{
	struct cuckoo *cuckoo = argument;

	for (unsigned page = 0; page < 4000000 / 4096 && !atomic_load(&cuckoo->stop);) {
		void *place = memory + page * 4096u;

		if (mmap(place, 4096, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0)
		    == place)
			atomic_store(&cuckoo->laid, ++page);
	}
	return NULL;
}

/* What was mapped where a region was unmapped is nobody's but its owner's, in a child too: zeros,
 * or where that cannot be told a signal, but not the image's bytes. */
static void child_takes_nothing_for_the_region(void)
{
	unsigned looked = 0;

	SHORT_OF_SANITIZERS;
	for (int round = 0; round < 8 || looked == 0; round++) {
		struct cuckoo cuckoo = {0};
		pthread_t threads[2];

		set_up();
		CHECK_EQ(pthread_create(&threads[0], NULL, unmap_one_by_one, &cuckoo), 0);
		CHECK_EQ(pthread_create(&threads[1], NULL, lay, &cuckoo), 0);
		for (int i = 0; i < 4; i++) {
			pid_t pid = fork();

			CHECK(pid != -1);
			if (pid == 0) {
				for (unsigned page = atomic_load(&cuckoo.laid); page-- > 0;)
					if (check_touch(memory + page * 4096u, 0) == 0)
						CHECK_EQ(memory[page * 4096u], 0);
				_exit(0);
			}
			CHECK_CHILD(pid);
			looked += atomic_load(&cuckoo.laid);
		}
		atomic_store(&cuckoo.stop, 1);
		for (int i = 0; i < 2; i++)
			CHECK_EQ(pthread_join(threads[i], NULL), 0);
		lr_session_close(session);
		lr_image_close(opened);
		image_fini(&image);
	}
	CHECK(looked > 0);
}

static const struct check_case cases[] = {
	CHECK_CASE(child_reads_what_the_parent_did_not_load),
	CHECK_CASE(child_lives_longer_than_its_parent),
	CHECK_CASE(child_may_call_everything),
	CHECK_CASE(child_without_descriptors_gets_a_signal),
	CHECK_CASE(bare_clone_gets_a_signal),
	CHECK_CASE(forks_amid_faults_and_sessions),
	CHECK_CASE(child_knows_what_others_gave_up),
	CHECK_CASE(child_takes_nothing_for_the_region),
};
CHECK_MAIN(cases)
