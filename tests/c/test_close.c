/* Closing a session whose region was unmapped just before, and whose place is somebody else's. */
#include "check.h"

#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <time.h>

#include "image_builder.h"
#include "session.h"

#define PAGE   4096u
#define LENGTH (256ul * PAGE)
#define TURNS  200
#define ENOUGH 5

struct setting {
	lr_session *session;
	uint8_t *memory;
};

static struct image image;
static lr_image *opened;

static void make(void)
{
	image_make(&image, PAGE, 16 * PAGE, LENGTH, "d");
	CHECK_EQ(lr_image_open(image.path, &opened, NULL), LR_OK);
}

static void unmake(void)
{
	lr_image_close(opened);
	image_fini(&image);
}

/* The region is mapped by the session, which would unmap it when it is closed. */
static void set_up(struct setting *set)
{
	struct lr_session_options options = {.privilege = LR_PRIVILEGE_AUTO};
	struct lr_problem problem;
	void *memory;
	int code = lr_session_open(opened, &options, &set->session, &problem);

	if (code == LR_ERR_PERMISSION || code == LR_ERR_UNSUPPORTED)
		SKIP("no userfaultfd here: %s", strerror(problem.os_error));
	CHECK_EQ(code, LR_OK);
	CHECK_EQ(lr_session_map(set->session, 0, &memory, NULL), LR_OK);
	set->memory = memory;
}

/* False where some other thread has the place already. */
static bool take_place(uint8_t *memory)
{
	void *again = mmap(memory, LENGTH, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (again != memory)
		return false;
	memset(memory, 'x', LENGTH);
	return true;
}

static void check_place(uint8_t *memory)
{
	CHECK_EQ(check_touch(memory, 0), 0);
	for (size_t at = 0; at < LENGTH; at++)
		CHECK_EQ(memory[at], 'x');
	CHECK_CALL(munmap(memory, LENGTH));
}

static void stay_on_one_processor(void)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET((unsigned)sched_getcpu(), &one);
	CHECK_CALL(sched_setaffinity(0, sizeof(one), &one));
}

/* Whatever this thread lets go on does not run before this thread sleeps. */
static void make_others_idle(void)
{
	struct sched_param none = {0};
	DIR *tasks = opendir("/proc/self/task");
	const struct dirent *task;

	CHECK(tasks);
	while ((task = readdir(tasks))) {
		pid_t id = (pid_t)strtol(task->d_name, NULL, 10);

		if (id > 0 && id != gettid())
			sched_setscheduler(id, SCHED_IDLE, &none);
	}
	closedir(tasks);
}

/* The pager has read of the unmapping, and whoever unmapped goes on: but it is not noted yet. */
static void leaves_what_was_mapped_while_the_unmapping_is_noted(void)
{
	struct setting set;
	int told = 0;

	make();
	stay_on_one_processor();
	for (int turn = 0; turn < TURNS && told < ENOUGH; turn++) {
		bool is_ours;

		set_up(&set);
		make_others_idle();
		CHECK_CALL(munmap(set.memory, LENGTH));
		is_ours = take_place(set.memory);
		told += is_ours && atomic_load(&set.session->target.reading) % 2;
		lr_session_close(set.session);
		if (is_ours)
			check_place(set.memory);
	}
	unmake();
	if (told < ENOUGH)
		SKIP("the pager was never kept from noting what it had read");
}

static void *unmap(void *argument)
{
	struct setting *set = argument;

	CHECK_CALL(munmap(set->memory, LENGTH));
	return NULL;
}

static void *close_session(void *argument)
{
	struct setting *set = argument;

	lr_session_close(set->session);
	return NULL;
}

/* One thread unmaps and waits until that is read; the kernel gives another the place meanwhile. */
static void leaves_what_was_mapped_before_the_unmapping_is_read(void)
{
	struct timespec pause = {.tv_nsec = 2000000};
	struct setting set;

	make();
	for (int turn = 0; turn < ENOUGH; turn++) {
		pthread_t unmapper, closer;

		set_up(&set);
		/* As if a fork() were under way: the pager reads nothing for some milliseconds. */
		atomic_store(&set.session->target.is_forking, true);
		CHECK_EQ(pthread_create(&unmapper, NULL, unmap, &set), 0);
		while (!take_place(set.memory))
			sched_yield();
		CHECK_EQ(pthread_create(&closer, NULL, close_session, &set), 0);
		/* It comes far where it does not wait for what is to be read. */
		nanosleep(&pause, NULL);
		CHECK_EQ(check_touch(set.memory, 0), 0);
		atomic_store(&set.session->target.is_forking, false);
		CHECK_EQ(pthread_join(closer, NULL), 0);
		CHECK_EQ(pthread_join(unmapper, NULL), 0);
		check_place(set.memory);
	}
	unmake();
}

static const struct check_case cases[] = {
	CHECK_CASE(leaves_what_was_mapped_while_the_unmapping_is_noted),
	CHECK_CASE(leaves_what_was_mapped_before_the_unmapping_is_read),
};
CHECK_MAIN(cases)
