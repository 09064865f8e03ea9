"""A look into the programs that JAX traces."""

import jax


def equations(function, *arguments):
    """All equations of the program of a function, those of the programs inside it included."""

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            yield equation
            for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from walk(inner)

    return walk(jax.make_jaxpr(function)(*arguments).jaxpr)


def exponentials(shape, function, *arguments):
    """How many exponentials of matrices of that shape, whatever batch they are in, a function takes."""
    found = (e.outvars[0].aval.shape[-2:] for e in equations(function, *arguments) if e.primitive.name == "exp")
    return sum(last == shape for last in found)
