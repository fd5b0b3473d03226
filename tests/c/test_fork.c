/* fork() with sessions open: a child finds no zeros where the parent had pages to come. */
#include "check.h"

#include <fcntl.h>
#include <pthread.h>

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

static void child_gets_a_signal(void)
{
	set_up();
	CHECK_EQ(memory[0], image.regions[0].bytes[0]);
	CHECK_SIGNAL(SIGSEGV, (void)*(volatile uint8_t *)memory;);
	CHECK_SIGNAL(SIGSEGV, (void)*(volatile uint8_t *)(memory + 2000000););
	CHECK_SIGNAL(SIGSEGV, (void)*(volatile uint8_t *)(memory + 3999999););
	tear_down();
}

/* The child may use all that it inherited: it is told, or nothing happens. */
static void child_may_call_everything(void)
{
	set_up();
	pid_t pid = fork();

	CHECK(pid != -1);
	if (pid == 0) {
		struct lr_session_stats stats;
		struct lr_load_error error;
		struct lr_trace_record record;
		uint64_t done;
		void *mapped;
		uint8_t byte;
		lr_reader *reader;
		lr_session *own;
		struct lr_session_options options = {.privilege = LR_PRIVILEGE_AUTO};

		CHECK_EQ(lr_session_map(session, 0, &mapped, NULL), LR_ERR_CLOSED);
		CHECK_EQ(lr_session_populate(session, 0, 0, 1, -1, &done, NULL), LR_ERR_CLOSED);
		CHECK_EQ(lr_session_suspend(session, 0), LR_ERR_CLOSED);
		CHECK_EQ(lr_session_resume(session, 0), LR_ERR_CLOSED);
		CHECK_EQ(lr_session_detach(session, 0), LR_ERR_CLOSED);
		lr_session_get_stats(session, &stats);
		CHECK_EQ(stats.regions_attached, 0);
		CHECK_EQ(lr_session_get_errors(session, 0, &error, 1), 0);
		CHECK_EQ(lr_session_read_trace(session, &record, 1, -1), 0);
		/* Its image goes on, and so does a session of its own. */
		CHECK_EQ(lr_reader_open(opened, &reader), LR_OK);
		CHECK_EQ(lr_reader_read(reader, 0, 8191, &byte, 1, 0, NULL), LR_OK);
		CHECK_EQ(byte, image.regions[0].bytes[8191]);
		lr_reader_close(reader);
#if CHECK_SANITIZER_FACTOR == 1 /* they allow no new thread in a child of many threads */
		CHECK_EQ(lr_session_open(opened, &options, &own, NULL), LR_OK);
		CHECK_EQ(lr_session_map(own, 0, &mapped, NULL), LR_OK);
		CHECK_MEM(mapped, image.regions[0].bytes, 4000000);
		lr_session_close(own);
#else
		(void)own, (void)options;
#endif
		lr_session_close(session);
		lr_image_close(opened);
		_exit(0);
	}
	CHECK_CHILD(pid);
	tear_down();
}

/* A copy of the descriptor in a child would keep pages missing, and touches of them hanging, after
 * the parent's session has ended. */
static void child_keeps_no_userfaultfd(void)
{
	set_up();
	pid_t pid = fork();

	CHECK(pid != -1);
	if (pid == 0) {
		for (int fd = 0; fd < 100; fd++) {
			char path[40], name[100] = "";

			snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
			if (readlink(path, name, sizeof(name) - 1) > 0)
				CHECK(strstr(name, "userfaultfd") == NULL);
		}
		_exit(0);
	}
	CHECK_CHILD(pid);
	tear_down();
}

/* A child's child, and a child that opens a session and forks. */
static void grandchild_gets_a_signal(void)
{
	set_up();
	pid_t pid = fork();

	CHECK(pid != -1);
	if (pid == 0) {
		CHECK_SIGNAL(SIGSEGV, (void)*(volatile uint8_t *)memory;);
		_exit(0);
	}
	CHECK_CHILD(pid);
	tear_down();
}

static void *touch_all(void *argument)
{
	uint64_t *wrong = argument;

	for (int round = 0; round < 3; round++)
		for (uint64_t offset = 0; offset < 4000000; offset += 4096)
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

static void forks_amid_faults_and_sessions(void)
{
	pthread_t toucher, opener;
	uint64_t wrong = 0;
	atomic_int stop = 0;

	set_up();
	CHECK_EQ(pthread_create(&toucher, NULL, touch_all, &wrong), 0);
	CHECK_EQ(pthread_create(&opener, NULL, open_and_close, &stop), 0);
	for (int i = 0; i < 100; i++) {
		pid_t pid = fork();

		CHECK(pid != -1);
		if (pid == 0)
			_exit(lr_session_suspend(session, 0) == LR_ERR_CLOSED ? 0 : 1);
		CHECK_CHILD(pid);
	}
	CHECK_EQ(pthread_join(toucher, NULL), 0);
	atomic_store(&stop, 1);
	CHECK_EQ(pthread_join(opener, NULL), 0);
	CHECK_EQ(wrong, 0);
	tear_down();
}

static const struct check_case cases[] = {
	CHECK_CASE(child_gets_a_signal),
	CHECK_CASE(child_may_call_everything),
	CHECK_CASE(child_keeps_no_userfaultfd),
	CHECK_CASE(grandchild_gets_a_signal),
	CHECK_CASE(forks_amid_faults_and_sessions),
};
CHECK_MAIN(cases)
