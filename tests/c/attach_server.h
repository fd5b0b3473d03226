/*
 * attach_server: a service for the tests of lr_attach, as small as can be: a process that serves
 * one peer after another from one image, by lr_session_serve. It dies where it is told to, as if it
 * was killed there.
 */
#ifndef LR_TESTS_ATTACH_SERVER_H
#define LR_TESTS_ATTACH_SERVER_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum attach_step {
	ATTACH_NEVER = 0,
	ATTACH_ACCEPTED,  /* a connection */
	ATTACH_GREETED,   /* LRATTACH was read */
	ATTACH_PART_TOLD, /* half of the table was sent */
	ATTACH_TOLD,      /* all of it */
	ATTACH_ASKED,     /* LRRANGES was read, with the userfaultfd */
	ATTACH_SERVING,   /* the session is there, LRSERVED was not sent */
	ATTACH_ANSWERED,  /* it was sent */
	ATTACH_STEPS,
};

struct attach_server {
	const char *image;
	const char *socket; /* its path: made anew */
	enum attach_step die_at;
	int does_fill; /* and says LRCOMPLT */
	/* Not a service: what it says, whoever connects; then it waits, or closes. */
	const void *says;
	size_t says_bytes;
	int does_close;
};

/* From now on servers are started by a process that is forked here, and has one thread: a
 * sanitizer allows no threads in a child of many. It has what is open now. */
void attach_server_prepare(void);
/* Returns its pid when it listens, or dies trying. */
pid_t attach_server_start(const struct attach_server *server);
/* Kill it, or wait until it has died. */
void attach_server_kill(pid_t pid);
void attach_server_wait(pid_t pid);
/* A folder for sockets: its name, in a static buffer. */
const char *attach_server_folder(void);

#endif
