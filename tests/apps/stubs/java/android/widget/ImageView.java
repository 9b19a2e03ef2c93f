// The part of Android's API (level 35) that the written project uses, declared and not defined.
package android.widget;

import android.content.Context;
import android.graphics.Bitmap;
import android.view.View;

public class ImageView extends View {
  public ImageView(Context context) {
    super(context);
  }

  public native void setImageBitmap(Bitmap bitmap);
}
