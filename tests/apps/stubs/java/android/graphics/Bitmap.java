// The part of Android's API (level 35) that the written project uses. A bitmap made of colours has its pixels, for the
// classifier runs on it; the rest is declared and not defined.
package android.graphics;

import android.annotation.NonNull;
import android.annotation.Nullable;

public final class Bitmap {
  public enum Config { ARGB_8888 }

  private final int[] colors;
  private final int width;
  private final int height;

  private Bitmap(int[] colors, int width, int height) {
    this.colors = colors;
    this.width = width;
    this.height = height;
  }

  @NonNull
  public static Bitmap createBitmap(@NonNull int[] colors, int width, int height, Config config) {
    return new Bitmap(colors.clone(), width, height);
  }

  @NonNull
  public static native Bitmap createBitmap(
      @NonNull Bitmap source, int x, int y, int width, int height, @Nullable Matrix matrix, boolean filter);

  @NonNull
  public static native Bitmap createScaledBitmap(@NonNull Bitmap source, int width, int height, boolean filter);

  public int getWidth() {
    return width;
  }

  public int getHeight() {
    return height;
  }

  public void getPixels(@NonNull int[] pixels, int offset, int stride, int x, int y, int width, int height) {
    if (x < 0 || y < 0 || x + width > this.width || y + height > this.height || stride < width) {
      throw new IllegalArgumentException("not within the bitmap");
    }
    for (int row = 0; row < height; row++) {
      System.arraycopy(colors, (y + row) * this.width + x, pixels, offset + row * stride, width);
    }
  }
}
