// The part of Android's API (level 35) that the written project uses, declared and not defined.
package android.graphics;

public class Matrix {
  public native boolean postRotate(float degrees);

  public native boolean postScale(float x, float y);
}
