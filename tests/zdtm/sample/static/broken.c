/* Cannot be built. */
#include "no-such-header.h"
