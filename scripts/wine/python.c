/* python.exe, as PC/python.c of CPython has it, with the DLL found at run time. */
#include <windows.h>

int wmain(int argc, wchar_t **argv) {
    HMODULE dll = LoadLibraryW(PYTHON_DLL);
    int (*run)(int, wchar_t **) = dll ? (int (*)(int, wchar_t **))GetProcAddress(dll, "Py_Main") : 0;
    return run ? run(argc, argv) : 99;
}
