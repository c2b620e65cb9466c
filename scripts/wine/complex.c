/* The complex functions that NumPy calls while it is imported, which Wine 10's ucrtbase names and lacks.
   MSVC's long double is a double, and its complex numbers are structs. */
typedef struct { double real, imaginary; } wide;
typedef struct { float real, imaginary; } narrow;

double hypot(double x, double y);
double atan2(double y, double x);

double own_creal(wide z) { return z.real; }
double own_creall(wide z) { return z.real; }
float own_crealf(narrow z) { return z.real; }
double own_cimag(wide z) { return z.imaginary; }
double own_cimagl(wide z) { return z.imaginary; }
float own_cimagf(narrow z) { return z.imaginary; }
double own_cabs(wide z) { return hypot(z.real, z.imaginary); }
double own_cabsl(wide z) { return hypot(z.real, z.imaginary); }
float own_cabsf(narrow z) { return (float)hypot(z.real, z.imaginary); }
double own_carg(wide z) { return atan2(z.imaginary, z.real); }
double own_cargl(wide z) { return atan2(z.imaginary, z.real); }
float own_cargf(narrow z) { return (float)atan2(z.imaginary, z.real); }
