/*
 * The usual case of a streamed answer: whole SSE events in whole chunks, from a worker's socket to a
 * client's, without Python in between.
 *
 * A Pump stands where a socket's watcher has its callback. Called, it reads once and sends what it
 * read, if that is nothing but whole chunks of which the last one ends an event. Everything else (an
 * end, an error, half a chunk, the last chunk, a client that takes less) it hands to Python, bytes
 * and all, and does nothing about it. So all rules stay in one place, `proxy/framing.py`; here is
 * only the question whether there is nothing to decide.
 *
 * Limited API of Python 3.11: one build serves all later versions.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define READ_SIZE 65536   /* as channel.READ_SIZE */
#define MAX_DIGITS 7      /* of a chunk size: no size that fits a read has more */

typedef struct {
    PyObject_HEAD
    int source;
    int sink;
    char straight;
    double moved;
    double passed;
    PyObject *barred;
    PyObject *otherwise;
    PyObject *stalled;
} Pump;

static int
hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool
is_crlf(const char *at)
{
    return at[0] == '\r' && at[1] == '\n';
}

/* Step over one whole chunk; NULL if it is none, not all here, or the last one. */
static const char *
next_chunk(const char *at, const char *end)
{
    size_t size = 0;
    int digit;
    for (int digits = 0; at < end && (digit = hex_digit(*at)) >= 0; at++) {
        if (++digits > MAX_DIGITS)
            return NULL;
        size = size << 4 | (size_t)digit;
    }
    if (size == 0 || (size_t)(end - at) < size + 4 || !is_crlf(at))
        return NULL;
    at += 2 + size;
    return is_crlf(at) ? at + 2 : NULL;
}

/* Tell whether this is whole chunks from end to end, the last of which ends an event as vLLM does. */
static bool
is_whole_events(const char *data, size_t length)
{
    const char *at = data, *end = data + length;
    while (at && at < end)
        at = next_chunk(at, end);
    return at && length >= 7 && memcmp(end - 4, "\n\n\r\n", 4) == 0;
}

static double
monotonic(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static PyObject *
pump_call(PyObject *object, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    /* One for all: nothing of it is used any more when Python is called. */
    static char buffer[READ_SIZE];
    Pump *self = (Pump *)object;
    ssize_t got = recv(self->source, buffer, sizeof buffer, MSG_DONTWAIT);
    if (got < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)
            Py_RETURN_NONE;
        return PyObject_CallFunction(self->otherwise, "y#i", "", (Py_ssize_t)0, errno);
    }
    char *barred;
    Py_ssize_t barred_length;
    if (PyBytes_AsStringAndSize(self->barred, &barred, &barred_length) < 0)
        return NULL;
    if (!self->straight || !is_whole_events(buffer, (size_t)got)
        || memmem(buffer, (size_t)got, barred, (size_t)barred_length))
        return PyObject_CallFunction(self->otherwise, "y#i", buffer, (Py_ssize_t)got, 0);
    ssize_t sent = send(self->sink, buffer, (size_t)got, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < got) {
        /* Full, or broken: then the next one who sends will learn of it. */
        if (sent < 0)
            sent = 0;
        self->passed += (double)sent;
        return PyObject_CallFunction(self->stalled, "y#", buffer + sent, (Py_ssize_t)(got - sent));
    }
    self->passed += (double)sent;
    self->moved = monotonic();
    Py_RETURN_NONE;
}

static PyObject *
pump_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"source", "sink", "barred", "otherwise", "stalled", NULL};
    int source, sink;
    PyObject *barred, *otherwise, *stalled;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iiSOO", names, &source, &sink, &barred, &otherwise,
                                     &stalled))
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Pump *self = (Pump *)allocate(type, 0);
    if (self == NULL)
        return NULL;
    self->source = source;
    self->sink = sink;
    self->moved = monotonic();
    self->barred = Py_NewRef(barred);
    self->otherwise = Py_NewRef(otherwise);
    self->stalled = Py_NewRef(stalled);
    return (PyObject *)self;
}

static int
pump_traverse(PyObject *object, visitproc visit, void *arg)
{
    Pump *self = (Pump *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->otherwise);
    Py_VISIT(self->stalled);
    return 0;
}

static int
pump_clear(PyObject *object)
{
    Pump *self = (Pump *)object;
    Py_CLEAR(self->otherwise);
    Py_CLEAR(self->stalled);
    return 0;
}

static void
pump_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    pump_clear(object);
    Py_CLEAR(((Pump *)object)->barred);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

static PyMemberDef pump_members[] = {
    {"straight", T_BOOL, offsetof(Pump, straight), 0,
     PyDoc_STR("Whether what comes next begins a chunk and an event; while it is false, all goes to Python.")},
    {"moved", T_DOUBLE, offsetof(Pump, moved), READONLY,
     PyDoc_STR("When it last moved anything, by `time.monotonic`; when it was made, if it never has.")},
    {"passed", T_DOUBLE, offsetof(Pump, passed), READONLY, PyDoc_STR("The bytes it has sent to the sink.")},
    {NULL},
};

static PyType_Slot pump_slots[] = {
    {Py_tp_doc,
     "Pump(source, sink, barred, otherwise, stalled): moves whole SSE events from one socket to another.\n\n"
     "`source` and `sink` are file descriptors, which must stay open as long as it may be called. What\n"
     "contains `barred`, and all that is no whole event, goes to `otherwise(data, errno)`; what the sink\n"
     "did not take of an event to `stalled(data)`."},
    {Py_tp_new, pump_new},
    {Py_tp_call, pump_call},
    {Py_tp_traverse, pump_traverse},
    {Py_tp_clear, pump_clear},
    {Py_tp_dealloc, pump_dealloc},
    {Py_tp_members, pump_members},
    {0, NULL},
};

static PyType_Spec pump_spec = {
    .name = "vllm_stack.native._pump.Pump",
    .basicsize = sizeof(Pump),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = pump_slots,
};

static int
module_exec(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &pump_spec, NULL);
    if (type == NULL)
        return -1;
    int failed = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return failed;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "vllm_stack.native._pump",
    .m_doc = PyDoc_STR("The usual case of a streamed answer, in C."),
    .m_slots = module_slots,
};

PyMODINIT_FUNC
PyInit__pump(void)
{
    return PyModuleDef_Init(&module_definition);
}
