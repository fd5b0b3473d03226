#include "zstd_dl.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "error.h"

/* The prototypes, from zstd's documented stable interface. Where zstd.h is installed the compiler
 * compares them. */
typedef struct ZSTD_DCtx_s dctx;
typedef dctx *create_fn(void);
typedef size_t free_fn(dctx *);
typedef size_t decompress_fn(dctx *, void *, size_t, const void *, size_t);
typedef unsigned long long content_size_fn(const void *, size_t);
typedef size_t frame_size_fn(const void *, size_t);
typedef unsigned is_error_fn(size_t);
typedef size_t sizeof_fn(const dctx *);

#if defined(__has_include)
#if __has_include(<zstd.h>)
#include <zstd.h>
_Static_assert(__builtin_types_compatible_p(create_fn, __typeof__(ZSTD_createDCtx)),
	       "ZSTD_createDCtx");
_Static_assert(__builtin_types_compatible_p(free_fn, __typeof__(ZSTD_freeDCtx)), "ZSTD_freeDCtx");
_Static_assert(__builtin_types_compatible_p(decompress_fn, __typeof__(ZSTD_decompressDCtx)),
	       "ZSTD_decompressDCtx");
_Static_assert(__builtin_types_compatible_p(content_size_fn, __typeof__(ZSTD_getFrameContentSize)),
	       "ZSTD_getFrameContentSize");
_Static_assert(__builtin_types_compatible_p(frame_size_fn,
					    __typeof__(ZSTD_findFrameCompressedSize)),
	       "ZSTD_findFrameCompressedSize");
_Static_assert(__builtin_types_compatible_p(is_error_fn, __typeof__(ZSTD_isError)), "ZSTD_isError");
_Static_assert(__builtin_types_compatible_p(sizeof_fn, __typeof__(ZSTD_sizeof_DCtx)),
	       "ZSTD_sizeof_DCtx");
#endif
#endif

static struct {
	pthread_once_t once;
	int status;
	create_fn *create;
	free_fn *free;
	decompress_fn *decompress;
	content_size_fn *content_size;
	frame_size_fn *frame_size;
	is_error_fn *is_error;
	sizeof_fn *context_bytes; /* or NULL: before 1.4.0 */
} zstd_api = {.once = PTHREAD_ONCE_INIT};

struct lr_zstd {
	dctx *context;
};

/* The last one that was closed, for who opens the next: to make one takes as long as decoding. */
static _Atomic(struct lr_zstd *) spare;

static void load_once(void)
{
	const char *named = getenv("LAZYRESTORE_LIBZSTD");
	void *library = dlopen(named && *named ? named : "libzstd.so.1", RTLD_NOW | RTLD_LOCAL);

	zstd_api.status = LR_ERR_NO_ZSTD;
	if (!library)
		return;
	zstd_api.create = (create_fn *)dlsym(library, "ZSTD_createDCtx");
	zstd_api.free = (free_fn *)dlsym(library, "ZSTD_freeDCtx");
	zstd_api.decompress = (decompress_fn *)dlsym(library, "ZSTD_decompressDCtx");
	zstd_api.content_size = (content_size_fn *)dlsym(library, "ZSTD_getFrameContentSize");
	zstd_api.frame_size = (frame_size_fn *)dlsym(library, "ZSTD_findFrameCompressedSize");
	zstd_api.is_error = (is_error_fn *)dlsym(library, "ZSTD_isError");
	zstd_api.context_bytes = (sizeof_fn *)dlsym(library, "ZSTD_sizeof_DCtx");
	if (zstd_api.create && zstd_api.free && zstd_api.decompress && zstd_api.content_size
	    && zstd_api.frame_size && zstd_api.is_error)
		zstd_api.status = LR_OK;
	else
		dlclose(library);
}

int lr_zstd_load(void)
{
	pthread_once(&zstd_api.once, load_once);
	return zstd_api.status;
}

int lr_zstd_open(lr_zstd **ret_zstd)
{
	lr_zstd *zstd;
	int code = lr_zstd_load();

	if (code < 0)
		return code;
	/* Acquire: partner of the release in lr_zstd_close. */
	*ret_zstd = atomic_exchange_explicit(&spare, NULL, memory_order_acquire);
	if (*ret_zstd)
		return LR_OK;
	zstd = calloc(1, sizeof(*zstd));
	if (!zstd)
		return LR_ERR_NOMEM;
	zstd->context = zstd_api.create();
	if (!zstd->context) {
		free(zstd);
		return LR_ERR_NOMEM;
	}
	*ret_zstd = zstd;
	return LR_OK;
}

void lr_zstd_close(lr_zstd *zstd)
{
	if (zstd)
		zstd = atomic_exchange_explicit(&spare, zstd, memory_order_acq_rel);
	if (!zstd)
		return;
	zstd_api.free(zstd->context);
	free(zstd);
}

void lr_zstd_have(lr_zstd *zstd)
{
	/* One block, as long as nothing but whole frames was decoded with it. */
	size_t bytes = zstd_api.context_bytes ? zstd_api.context_bytes(zstd->context) : 0;
	volatile uint8_t *at = (volatile uint8_t *)zstd->context;

	for (size_t i = 0; i < bytes; i += 4096)
		at[i] = at[i];
	if (bytes)
		at[bytes - 1] = at[bytes - 1];
}

int lr_zstd_decode(lr_zstd *zstd, const void *frame, size_t frame_bytes, void *ret_data,
		   size_t bytes)
{
	size_t decoded;

	/* The frame says how long its content is, and is the whole payload: no second frame,
	 * nothing behind it. */
	if (zstd_api.content_size(frame, frame_bytes) != bytes
	    || zstd_api.frame_size(frame, frame_bytes) != frame_bytes)
		return LR_ERR_FRAME;
	decoded = zstd_api.decompress(zstd->context, ret_data, bytes, frame, frame_bytes);
	if (zstd_api.is_error(decoded) || decoded != bytes)
		return LR_ERR_FRAME;
	return LR_OK;
}
