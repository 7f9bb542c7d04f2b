"""STUB by the lead, to be overwritten by task A."""
import jax.numpy as jnp
class Curve: pass
def nearest_relu(x,z,wx,wz,d):
    both=(wx*x+wz*z)/(wx+wz); pos=jnp.maximum(both,d); neg=jnp.minimum(x,d)
    D=lambda v: wx*(v-x)**2+wz*(jnp.maximum(v,d)-z)**2
    return jnp.where(D(pos)<=D(neg),pos,neg)
nearest_abs=nearest_square=nearest_on_curve=None
TANH=LOGISTIC=EXP=LOG=Curve()
